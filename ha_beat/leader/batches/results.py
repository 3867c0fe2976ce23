"""Results: applies the answers to a batch to the entries' states and the due queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.clock import from_micros
from ha_beat.dispatch import Answer
from ha_beat.leader.batches.batch_builder import whole
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Planner
from ha_beat.reasons import AnswerKind, EntryFault, SkipReason, UncertainReason, Verdict
from ha_beat.schedule.misfire import Decision
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

#: Delay before an entry that failed alone is retried.
_ENTRY_RETRY = timedelta(seconds=1)


@dataclass(slots=True)
class Applied:
    """Outcome of a batch: whether a message was enqueued, the operations that must follow, and why some were unsent."""

    sent: bool = False
    follow_up: list[EntryOperation] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)


class Results:
    """Handler of the answers to a batch."""

    def __init__(self, parts: LeaderParts, planner: Planner, claims: OpenClaims) -> None:
        self._parts = parts
        self._planner = planner
        self._claims = claims

    def apply(
        self, term: Term, operations: Sequence[EntryOperation], answers: Sequence[Answer], queue: DueQueue
    ) -> Applied:
        """Apply the answers to a batch, and report progress after each."""
        now, applied = self._parts.time.now(), Applied()
        writer = LedgerWriter(term, now)
        for done, answer in zip(operations, answers, strict=True):
            if done.state.entry.celery_entry is None:
                self._apply_to_unscheduled(done, answer, now)
            else:
                self._apply(done, answer, queue, now)
            self._parts.pace.progress()
            match answer.kind:
                case AnswerKind.DONE | AnswerKind.MINE | AnswerKind.PARTIAL if done.sends:
                    applied.sent = True
                case AnswerKind.OVERLAP if done.decision is not None:
                    skipped = whole(done.decision, SkipReason.OVERLAP, "")
                    applied.follow_up.append(writer.skip(done.state, skipped, done.decision.position))
                case AnswerKind.UNSENT:
                    applied.unsent.append(answer.detail)
                case AnswerKind.PAUSED if answer.detail:
                    self._parts.pause.invalidate()
                case AnswerKind.PAUSED | AnswerKind.WITHDRAWN:
                    self._parts.pause.refused = True
                case _:
                    pass
        return applied

    def _apply_to_unscheduled(self, done: EntryOperation, answer: Answer, now: datetime) -> None:
        """Report the verdict of an entry that is not in the schedule. The next reload retries a failed operation."""
        if answer.kind in {AnswerKind.DONE, AnswerKind.MINE}:
            if done.decision is not None:
                self._report(done.state.entry, done.decision, done.row, now)
            self._notify_armed(done.state)

    def _apply(self, done: EntryOperation, answer: Answer, queue: DueQueue, now: datetime) -> None:
        state = done.state
        match answer.kind:
            case AnswerKind.DONE | AnswerKind.MINE:
                self._record(done, done.row, queue, now)
            case AnswerKind.PARTIAL:
                self._parts.emit(events.EntryFailed(state.label, EntryFault.PARTIAL, answer.detail))
                self._record(done, done.row, queue, now)
            case AnswerKind.UNCERTAIN:
                self._record(done, LedgerRow.parse(answer.detail) or done.row, queue, now)
            case AnswerKind.AGAIN:
                state.row = LedgerRow.parse(answer.detail) or done.row
                state.record_failure(now)
                self._claims.resend(queue, state, done.operation.records, now + _ENTRY_RETRY)
            case AnswerKind.UNSENT:
                self._parts.kept.unsent(state.id)
                state.record_failure(now, answer.detail)
                queue.put(state, state.due_at or now)
            case AnswerKind.PAUSED | AnswerKind.WITHDRAWN | AnswerKind.DEFERRED:
                self._parts.kept.unsent(state.id)
                # An entry that is itself paused must not keep the main loop busy until its pause was read.
                queue.put(state, state.due_at or now, now + _ENTRY_RETRY if answer.detail else None)
            case AnswerKind.OVERLAP:
                self._parts.kept.unsent(state.id)
                if answer.detail and (state.row is None or state.row.reason != SkipReason.OVERLAP):
                    self._parts.emit(events.EntryFailed(state.label, EntryFault.NO_REPORTS))
            case AnswerKind.ERROR:
                self._parts.kept.unsent(state.id)
                if state.failure is None:
                    # Once per occurrence, because it is retried each second.
                    self._parts.emit(events.EntryFailed(state.label, EntryFault.REFUSED, answer.detail))
                state.record_failure(now, answer.detail)
                queue.put(state, state.due_at or now, now + _ENTRY_RETRY)
            case AnswerKind.MOVED:
                self._follow(state, answer.detail, queue, now)

    def _record(self, done: EntryOperation, row: LedgerRow, queue: DueQueue, now: datetime) -> None:
        """Record the row that was written, and plan the next occurrence."""
        state, decision = done.state, done.decision
        if done.sends:
            self._parts.kept.forget(state.id)
        elif row.reason != SkipReason.STATE_LOSS:
            self._parts.kept.passed_over(state)
        state.record_row(row)
        self._claims.forget(state.id)
        self._parts.shadow.learn(state.id, row.base)
        if decision is None or state.resumed:
            state.resumed = False
            self._notify_armed(state)
        if decision is None:
            # The entry was armed at the position from which it was planned.
            state.rest()
            if done.replan:
                self._planner.plan(queue, state, now)
            return
        self._report(state.entry, decision, row, now)
        self._planner.notify(state.label, lambda: self._parts.source.recorded(state.entry, row))
        self._planner.plan(queue, state, now, built_at=from_micros(done.row.dispatched_ms * 1000))

    def _report(self, entry: ScheduledEntry, decision: Decision, row: LedgerRow, now: datetime) -> None:
        """Emit the verdicts of the decision."""
        if decision.skipped is not None:
            s = decision.skipped
            self._parts.emit(events.OccurrenceSkipped(entry.label, s.first, s.until, s.count, s.reason, s.detail))
        if decision.send is None:
            return
        if row.verdict is Verdict.UNCERTAIN:
            reason = UncertainReason(row.reason)
            self._parts.emit(events.OccurrenceUncertain(entry.label, decision.send, row.task_id, reason, row.detail))
        else:
            lateness = (now - decision.send).total_seconds()
            self._parts.emit(events.Enqueued(entry.label, entry.task, row.task_id, decision.send, lateness))

    def _follow(self, state: EntryState, raw: str, queue: DueQueue, now: datetime) -> None:
        """Continue an entry from a row that another writer has written."""
        row = LedgerRow.parse(raw) if raw else None
        if raw and row is None:
            self._parts.emit(events.EntryFailed(state.label, EntryFault.ROW_UNREADABLE))
            queue.drop(state)
            return
        before, state.row, state.resend = state.row, row, False
        state.owed = row.owed if row is not None else None
        state.position = max(state.position, row.base) if row else state.position  # guard: moved-row-followed
        self._claims.forget(state.id)
        # No report if an earlier leader has confirmed late that it enqueued the uncertain occurrence.
        if row is None or before is None or row.verdict is not Verdict.ENQUEUED or row.task_id != before.task_id:
            self._parts.emit(events.EntryFailed(state.label, EntryFault.ROW_CHANGED))
        self._planner.plan(queue, state, now)
        if state.ticket and state.due_at is not None and state.due_at <= now:
            # The other writer may write again, so do not retry in a tight loop.
            queue.put(state, state.due_at, now + _ENTRY_RETRY)

    def _notify_armed(self, state: EntryState) -> None:
        self._planner.notify(state.label, lambda: self._parts.source.armed(state.id))
