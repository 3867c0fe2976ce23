"""Claims of which nobody knows whether their message was sent: sent again, or given up as uncertain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.dispatch import Dispatcher, OpenClaim
from ha_beat.leader.due_queue import Agenda, Slot
from ha_beat.reasons import UncertainReason
from ha_beat.store.lease import Term


class Claims:
    """What earlier sendings have left open. After ``settle_after`` seconds none of them is under way any more."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None], settle_after: float) -> None:
        self._clock = clock
        self._emit = emit
        self._settle_after = settle_after
        self._open: list[OpenClaim] = []
        self._settle_at = 0.0
        #: Of entries to be sent again: what the journal has to be told with them.
        self._carried: dict[str, tuple[str, ...]] = {}

    def find(self, dispatcher: Dispatcher, term: Term) -> None:
        """At the start of a term, and when the schedule was read again."""
        self._open = dispatcher.open_claims(term)
        self._settle_at = self._clock.elapsed() + self._settle_after

    def send_again(self, agenda: Agenda, term: Term, now: datetime) -> None:
        """Put occurrences whose policy is to republish on the agenda, for when the first sending is certainly over."""
        self._carried = {}
        for claim in list(self._open):
            slot = agenda.get(claim.entry)
            if claim.policy != "republish" or slot is None or slot.row is None or slot.row.raw != claim.row:
                continue
            if slot.row.scheduled_at is not None:
                self._open.remove(claim)
                wait = 0.0 if claim.nonce == term.nonce else self._settle_after
                self.redo(agenda, slot, claim.records, now + timedelta(seconds=wait))

    def redo(self, agenda: Agenda, slot: Slot, records: Sequence[str], not_before: datetime) -> None:
        """Send the row's own occurrence once more. The last of the records is its own, and is written anew."""
        if slot.row is not None and slot.row.scheduled_at is not None:
            slot.redo = True
            self._carried[slot.id] = tuple(records[:-1])
            agenda.put(slot, slot.row.scheduled_at, not_before)

    def carried(self, slot: Slot) -> tuple[str, ...]:
        return self._carried.get(slot.id, ())

    def forget(self, slot: Slot) -> None:
        """Its occurrence has a verdict."""
        self._carried.pop(slot.id, None)

    def settle(self, dispatcher: Dispatcher, agenda: Agenda, term: Term) -> None:
        """Give up what others left, once it can't be under way any more."""
        if self._open and self._clock.elapsed() >= self._settle_at:  # guard: claim-settled-late
            self._give_up(dispatcher, agenda, term, self._open)
            self._open = []

    def abandon(self, dispatcher: Dispatcher, agenda: Agenda, term: Term, slot: Slot) -> None:
        """It was sent once at least, nobody knows with what success, and could not be sent again for too long."""
        if slot.row is None:
            return
        claimed = slot.row.raw
        claims = [claim for claim in dispatcher.open_claims(term) if claim.row == claimed]
        self._give_up(dispatcher, agenda, term, claims)
        slot.redo, slot.failing_since = False, None
        self.forget(slot)

    def _give_up(self, dispatcher: Dispatcher, agenda: Agenda, term: Term, claims: Sequence[OpenClaim]) -> None:
        for entry, row in dispatcher.give_up(term, claims).items():
            slot = agenda.get(entry)
            if slot is not None and slot.row is not None and slot.row.task_id == row.task_id:
                slot.row = row
            label = entry if slot is None else slot.label
            reason = UncertainReason(row.reason)
            self._emit(events.OccurrenceUncertain(label, row.scheduled_at, row.task_id, reason, row.detail))
