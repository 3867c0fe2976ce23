"""Takes in what became of each operation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.dispatch import Answer
from ha_beat.leader.due_queue import Agenda, Slot
from ha_beat.leader.ledger_writer import Work
from ha_beat.leader.open_claims import Claims
from ha_beat.leader.planner import Planner, ScheduleSource
from ha_beat.reasons import EntryFault, UncertainReason, Verdict
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.shadow import Shadow

#: Until an entry that failed alone is tried again.
_ENTRY_RETRY = timedelta(seconds=1)


class Settler:
    """Brings slots and agenda to where the ledger is by now."""

    def __init__(
        self,
        source: ScheduleSource,
        planner: Planner,
        claims: Claims,
        shadow: Shadow,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._source = source
        self._planner = planner
        self._claims = claims
        self._shadow = shadow
        self._emit = emit

    def take_in(self, work: Work, answer: Answer, agenda: Agenda, now: datetime) -> None:
        slot = work.slot
        if slot.entry is None:
            # Of an entry that is gone. What went wrong is done at the next reading of the schedule.
            if answer.kind in {"done", "mine"}:
                self._planner.tell(slot, lambda: self._source.armed(slot.id))
            return
        match answer.kind:
            case "done" | "mine" | "partial":
                if answer.kind == "partial":
                    self._emit(events.EntryFailed(slot.label, EntryFault.PARTIAL, answer.detail))
                self._settled(work, work.row, agenda, now)
            case "uncertain":
                self._settled(work, LedgerRow.parse(answer.detail) or work.row, agenda, now)
            case "again":
                slot.row, slot.failing_since = LedgerRow.parse(answer.detail) or work.row, slot.failing_since or now
                self._claims.redo(agenda, slot, work.operation.records, now + _ENTRY_RETRY)
            case "unsent":
                slot.failing_since, slot.detail = slot.failing_since or now, answer.detail
                agenda.put(slot, slot.due_at or now)
            case "paused" | "withdrawn":
                agenda.put(slot, slot.due_at or now)
            case "error":
                if slot.failing_since is None:
                    # Once for each occurrence: it is tried again every second.
                    self._emit(events.EntryFailed(slot.label, EntryFault.REFUSED, answer.detail))
                slot.failing_since, slot.detail = slot.failing_since or now, answer.detail
                agenda.put(slot, slot.due_at or now, now + _ENTRY_RETRY)
            case "moved":
                self._follow(slot, answer.detail, agenda, now)

    def _settled(self, work: Work, row: LedgerRow, agenda: Agenda, now: datetime) -> None:
        slot, due = work.slot, work.due
        slot.row, slot.base, slot.failing_since, slot.detail, slot.redo = row, row.base, None, "", False
        self._claims.forget(slot)
        self._shadow.learn(slot.id, row.base)
        if due is None or slot.resumed:
            slot.resumed = False
            self._planner.tell(slot, lambda: self._source.armed(slot.id))
        if due is None:
            # Armed: it is on the agenda already, where the base that was just recorded has put it.
            return
        if due.skipped is not None:
            s = due.skipped
            self._emit(events.OccurrenceSkipped(slot.label, s.first, s.until, s.count, s.reason, s.detail))
        if due.send is not None and row.verdict is Verdict.UNCERTAIN:
            reason = UncertainReason(row.reason)
            self._emit(events.OccurrenceUncertain(slot.label, due.send, row.task_id, reason, row.detail))
        elif due.send is not None:
            lateness = (now - due.send).total_seconds()
            self._emit(events.Enqueued(slot.label, str(slot.entry.task), row.task_id, due.send, lateness))
        self._planner.tell(slot, lambda: self._source.settled(slot, row))
        self._planner.plan(agenda, slot, now)

    def _follow(self, slot: Slot, raw: str, agenda: Agenda, now: datetime) -> None:
        """Somebody else has written the row: go on from there."""
        row = LedgerRow.parse(raw) if raw else None
        if raw and row is None:
            self._emit(events.EntryFailed(slot.label, EntryFault.ROW_UNREADABLE))
            agenda.drop(slot)
            return
        before, slot.row, slot.redo = slot.row, row, False
        slot.base = max(slot.base, row.base) if row else slot.base  # guard: moved-row-followed
        self._claims.forget(slot)
        # An earlier leader may have come to say that it had enqueued what was uncertain.
        if row is None or before is None or row.verdict is not Verdict.ENQUEUED or row.task_id != before.task_id:
            self._emit(events.EntryFailed(slot.label, EntryFault.ROW_CHANGED))
        self._planner.plan(agenda, slot, now)
        if slot.ticket and slot.due_at is not None and slot.due_at <= now:
            # Whoever it is may do so again and again.
            agenda.put(slot, slot.due_at, now + _ENTRY_RETRY)
