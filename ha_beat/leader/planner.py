"""Where the entries come from, and where each of them stands on the agenda."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from ha_beat import events
from ha_beat.leader.due_queue import Agenda, Slot
from ha_beat.leader.reconcile import Absence
from ha_beat.reasons import EntryFault
from ha_beat.schedule.occurrence import FOREVER
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow


class ScheduleSource(Protocol):
    """The scheduler class that Celery runs."""

    def slots(self) -> Iterable[Slot]:
        """A new slot for each entry that can be scheduled; ``base`` is the entry's own last run, or the minimum."""
        ...

    def check(self, slot: Slot) -> tuple[bool, float]:
        """Ask an entry that alone knows: is it due, and in how many seconds to ask again (if so, once it has run)."""
        ...

    def arguments(self, slot: Slot) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        """The args, kwargs and options that go into the entry's message now."""
        ...

    def settled(self, slot: Slot, row: LedgerRow) -> None:
        """The ledger has the row."""
        ...

    def absence(self, term: Term) -> Absence | None:
        """What can be said of entries that are not there; ``None`` where that means nothing."""
        ...

    def armed(self, entry_id: str) -> None:
        """The ledger has it that the entry has begun, gone on again, or gone."""
        ...

    def finished(self, slot: Slot) -> None:
        """The entry has no instant left."""
        ...


class Planner:
    """Puts entries on an agenda, each for when it is due next."""

    def __init__(self, source: ScheduleSource, emit: Callable[[events.Event], None]) -> None:
        self._source = source
        self._emit = emit

    def plan(self, agenda: Agenda, slot: Slot, now: datetime) -> None:
        if slot.once and slot.runs:
            agenda.drop(slot)
            self.tell(slot, lambda: self._source.finished(slot))
            return
        if slot.instants is None:
            again = now + timedelta(seconds=slot.ask_in)
            # Up to its base nothing is owed, whatever it says when it is asked: after a loss that may lie ahead.
            agenda.put(slot, max(again, slot.base))  # guard: plan-not-before-base
            return
        try:
            due_at = slot.instants.next_after(slot.base)
        except Exception as exc:
            self._emit(events.EntryFailed.raised(slot.label, EntryFault.SCHEDULE_RAISES, exc))
            agenda.drop(slot)
            return
        if due_at >= FOREVER:
            agenda.drop(slot)
            self.tell(slot, lambda: self._source.finished(slot))
            return
        agenda.put(slot, due_at)

    def tell(self, slot: Slot, tell: Callable[[], None]) -> None:
        """Let the scheduler class know; what it makes of it must not cost the other entries of the batch."""
        try:
            tell()
        except Exception as exc:
            self._emit(events.EntryFailed.raised(slot.label, EntryFault.CALLBACK_RAISES, exc))
