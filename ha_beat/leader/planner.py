"""Schedule source, and the planner that puts its entries into the due queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from ha_beat import events
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.reasons import EntryFault
from ha_beat.schedule.occurrence import FOREVER
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """Entries that have changed, by id; all of them if ``ids`` is ``None``."""

    ids: frozenset[str] | None = None


EVERYTHING = ScheduleChange()


@dataclass(frozen=True, slots=True)
class Absence:
    """Meaning of a missing entry: it was deleted or disabled. ``certain``: its store was read under this term."""

    certain: bool


class ScheduleSource(Protocol):
    """Schedule that the leader works on."""

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        """Return each entry that can be scheduled, of these ``ids`` if they are given."""
        ...

    def ask_if_due(self, entry: ScheduledEntry, position: datetime) -> tuple[bool, float]:
        """Ask an entry without a recurrence whether it is due.

        Returns:
            Whether it is due, and in how many seconds to ask again: from now, or from the run if it is due.
        """
        ...

    def arguments(self, entry: ScheduledEntry) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        """Return the args, kwargs and options of the entry's next message."""
        ...

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        """Note that the ledger has this row for an occurrence of the entry."""
        ...

    def absence(self, term: Term) -> Absence | None:
        """Return what a missing entry means; ``None`` if it means nothing."""
        ...

    def armed(self, entry_id: str) -> None:
        """Note that the ledger records the entry as started, resumed or deleted."""
        ...

    def finished(self, entry: ScheduledEntry, runs: int) -> None:
        """Note that the entry has no further instant. ``runs`` is how often it has run."""
        ...


class Planner:
    """Planner that puts entries into a due queue, each for its next due time."""

    def __init__(self, source: ScheduleSource, emit: Callable[[events.Event], None]) -> None:
        self._source = source
        self._emit = emit

    def plan(self, queue: DueQueue, state: EntryState, now: datetime, built_at: datetime | None = None) -> None:
        """Put an entry into the queue, or drop it if it has no further instant.

        If its next instant was already due at ``built_at``, it goes after the entries that are due now.
        """
        entry = state.entry
        if entry.once and state.runs:
            self._finish(queue, state)
            return
        if entry.recurrence is None:
            again = now + timedelta(seconds=state.ask_in)
            # After a loss of state the position is ahead: earlier occurrences may have been enqueued.
            queue.put(state, max(again, state.position))  # guard: plan-not-before-base
            return
        try:
            due_at = state.next_due()
            sends_at = state.send_at(due_at) if due_at < FOREVER else due_at
        except Exception as exc:
            self._emit(events.EntryFailed.raised(state.label, EntryFault.SCHEDULE_RAISES, exc))
            queue.drop(state)
            return
        if due_at >= FOREVER:
            self._finish(queue, state)
        else:
            queue.put(state, due_at, now if built_at is not None and due_at <= built_at else None, sends_at=sends_at)

    def _finish(self, queue: DueQueue, state: EntryState) -> None:
        queue.drop(state)
        self.notify(state.label, lambda: self._source.finished(state.entry, state.runs))

    def notify(self, label: str, call: Callable[[], None]) -> None:
        """Call the schedule source. Its exception must not affect the other entries of the batch."""
        try:
            call()
        except Exception as exc:
            self._emit(events.EntryFailed.raised(label, EntryFault.CALLBACK_RAISES, exc))
