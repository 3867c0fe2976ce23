"""What is due next: the leader's entries in order of due time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ha_beat.reasons import UncertainPolicy, Verdict
from ha_beat.schedule.misfire import Decision, MisfireRules
from ha_beat.schedule.recurrence import Recurrence
from ha_beat.store.ledger import LedgerRow


@dataclass(eq=False, slots=True)
class Slot:
    """One entry on the agenda.

    ``entry`` is the scheduler's own object. ``instants`` is ``None`` where only the entry itself can say whether it is
    due. ``row`` is the ledger's as last seen, and ``base`` the instant that the next occurrence is counted from.
    """

    id: str
    entry: Any
    instants: Recurrence | None
    misfire: MisfireRules
    signature: str
    base: datetime
    row: LedgerRow | None = None
    due_at: datetime | None = None
    failing_since: datetime | None = None
    #: The error of the last attempt to enqueue it.
    detail: str = ""
    #: Whether the row's own occurrence is to be sent once more: nobody knows whether it was.
    redo: bool = False
    uncertain: UncertainPolicy = UncertainPolicy.SKIP
    ticket: int = 0
    #: What people call it, where that is not the id.
    name: str = ""
    #: How often the entry has run, as its own store has it.
    run_count: int = 0
    #: Whether it is done for good once it has run.
    once: bool = False
    #: From when on a new or edited entry is owed its instants; ``None`` for the moment at which it is first seen.
    since: datetime | None = None
    #: Whether it was off, seen from its own store, since it was last armed.
    resumed: bool = False
    #: Whether its own store says that it ran and not when: that was cleared, as it is where an entry is switched off.
    cleared: bool = False
    #: Where only the entry can say whether it is due: in how many seconds to ask again once it has run, as it said.
    ask_in: float = 0.0

    @property
    def label(self) -> str:
        return self.name or self.id

    @property
    def runs(self) -> int:
        """How often it has run since it was last off."""
        row = self.row
        if (
            row is None
            or row.verdict is Verdict.ABSENT  # guard: runs-after-absence
            or self.resumed
        ):
            return self.run_count
        return row.run_count

    @property
    def expected(self) -> str:
        return self.row.raw if self.row is not None else ""

    def decide(self, now: datetime) -> Decision:
        """What to do about this entry, which is due."""
        due_at = self.due_at or now
        if self.redo and self.row is not None:
            return Decision(due_at, self.row.base)
        if self.instants is None:
            return Decision(due_at, due_at)
        return self.misfire.decide(self.instants, due_at, now)


@dataclass(slots=True)
class Agenda:
    """A heap of slots by due time. Nothing here takes time in proportion to the schedule, but for :meth:`slots`."""

    _heap: list[tuple[datetime, int, Slot]] = field(default_factory=list)
    _by_id: dict[str, Slot] = field(default_factory=dict)
    _tickets: int = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def slots(self) -> Iterable[Slot]:
        return self._by_id.values()

    def get(self, entry_id: str) -> Slot | None:
        return self._by_id.get(entry_id)

    def put(self, slot: Slot, due_at: datetime, not_before: datetime | None = None) -> None:
        """Add the slot, or put it back, to be looked at when it is due, but not before the time given."""
        self._by_id[slot.id] = slot
        slot.due_at = due_at
        self._tickets += 1
        slot.ticket = self._tickets
        heapq.heappush(self._heap, (max(due_at, not_before or due_at), self._tickets, slot))

    def drop(self, slot: Slot) -> None:
        slot.ticket = 0
        if self._by_id.get(slot.id) is slot:
            del self._by_id[slot.id]

    def pop_due(self, now: datetime, limit: int) -> Iterator[Slot]:
        """Take off up to ``limit`` slots that are due, in order of due time."""
        while limit and self._heap and self._heap[0][0] <= now:
            _, ticket, slot = heapq.heappop(self._heap)
            if slot.ticket == ticket:
                limit -= 1
                yield slot

    def next_due(self) -> datetime | None:
        """When to look again."""
        return self._heap[0][0] if self._heap else None

    def upcoming(self, limit: int) -> list[tuple[datetime, Slot]]:
        """The slots that come next, in order. May be called from another thread than the one that works here."""
        # Not the heap: an entry that is being dispatched is off it for that moment.
        slots = list(self._by_id.values())
        # One at a time: so many new tuples at once would have the garbage collector walk over all that there is, with
        # the main loop waiting.
        due = ((slot.due_at, slot.ticket, slot) for slot in slots if slot.due_at is not None)
        return [(at, slot) for at, _, slot in heapq.nsmallest(limit, due, key=lambda line: line[:2])]

    def overdue(self, now: datetime) -> float:
        """For how many seconds the slot that waits longest has been due, also while it is to be left alone for now."""
        return waited(self.upcoming(1), now)

    def backlog(self, now: datetime) -> int:
        """How many slots are due; counts them. May be called from another thread than the one that works here."""
        soonest = self._heap[:1]
        if not soonest or soonest[0][0] > now:
            return 0
        return sum(1 for at, ticket, slot in self._heap.copy() if at <= now and slot.ticket == ticket)


def waited(upcoming: Sequence[tuple[datetime, Slot]], now: datetime) -> float:
    """For how many seconds the first of them has been due; 0 where it is not, or there is none."""
    return max(0.0, (now - upcoming[0][0]).total_seconds()) if upcoming else 0.0
