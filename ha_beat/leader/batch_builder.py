"""Batch builder: makes operations of the entries that are due."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

from ha_beat import events
from ha_beat.budget import Budget
from ha_beat.clock import Clock
from ha_beat.dispatch import Dispatcher, MessageFailed, Operation, PreparedMessage, judged_build_errors
from ha_beat.dispatch.message import Declined
from ha_beat.errors import StoreError
from ha_beat.headers import full_header, header_of, with_header
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.leader.kept_messages import KeptMessages
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.options import LeaderOptions
from ha_beat.leader.pause import PauseState
from ha_beat.leader.planner import Planner, ScheduleSource
from ha_beat.leader.slow_arguments import SlowArguments
from ha_beat.reasons import BuildFault, EntryFault, SkipReason, Verdict
from ha_beat.schedule.misfire import Decision, Skipped, newest_due
from ha_beat.schedule.occurrence import Occurrence

#: Seconds until an entry whose schedule raises is asked again.
SCHEDULE_RETRY = 60.0

#: Characters of messages that fill a batch. Redis does nothing else for about 30 ms while it takes them.
BATCH_CHARACTERS = 4_000_000

#: Seconds until a message that could not be built is built again, doubled with each failure.
_BUILD_RETRY = 0.5
_LONGEST_BUILD_RETRY = 8.0

#: Shortest pause, as a multiple of the time that the attempt took: the other entries have the main loop meanwhile.
_REST = 9.0

#: Time until an entry whose arguments a thread computes is looked at again.
_ASK_AGAIN = timedelta(seconds=0.1)

_MAX_DETAIL = 500


@dataclass(slots=True)
class Batch:
    """Operations for due entries. ``waiting`` entries stay due, because the broker failed with ``error``.

    ``out_of_time``: the budget is spent, and due entries may be left.
    """

    operations: list[EntryOperation] = field(default_factory=list)
    waiting: list[EntryState] = field(default_factory=list)
    error: StoreError | None = None
    out_of_time: bool = False


class BatchBuilder:
    """Builder of the batches of one term."""

    def __init__(
        self,
        source: ScheduleSource,
        planner: Planner,
        claims: OpenClaims,
        cluster: str,
        emit: Callable[[events.Event], None],
        options: LeaderOptions,
        clock: Clock,
        kept: KeptMessages,
        slow: SlowArguments,
        pause: PauseState,
    ) -> None:
        self._source = source
        self._planner = planner
        self._claims = claims
        self._cluster = cluster
        self._emit = emit
        self._options = options
        self._clock = clock
        self._kept = kept
        self._slow = slow
        self._pause = pause

    def build(self, writer: LedgerWriter, queue: DueQueue, dispatcher: Dispatcher, budget: Budget) -> Batch:
        """Build a batch of due entries, as many as the budget allows, but at least one.

        Once the broker fails, add only entries that need no message.
        """
        batch, room = Batch(), BATCH_CHARACTERS
        popped = list(queue.pop_due(writer.now, min(self._options.batch_size, dispatcher.capacity)))
        for number, state in enumerate(popped):
            if room <= 0 or (number and budget.spent):
                for left in popped[number:]:
                    # Not at its due time: an entry with a backlog would precede the others in each batch.
                    queue.put(left, left.due_at or writer.now, writer.now)
                break
            state.tried_at = writer.now
            try:
                operation = self._operation(writer, state, queue, dispatcher, batch.error)
            except StoreError as exc:
                batch.error = exc
                batch.waiting.append(state)
                continue
            finally:
                budget.item_done()
            if operation is not None:
                batch.operations.append(operation)
                room -= operation.operation.size
        batch.out_of_time = budget.spent
        for state in batch.waiting:
            state.record_failure(writer.now, str(batch.error))
            queue.put(state, state.due_at or writer.now)
        return batch

    def _operation(
        self, writer: LedgerWriter, state: EntryState, queue: DueQueue, dispatcher: Dispatcher, error: StoreError | None
    ) -> EntryOperation | None:
        now = writer.now
        try:
            if state.entry.recurrence is None and not state.resend and not self._is_due(state, queue, now):
                return None
            pause = self._pause.entries.get(state.id)
            decision = state.decide(now, pause)
        except Exception as exc:
            self._emit(events.EntryFailed.raised(state.label, EntryFault.SCHEDULE_RAISES, exc))
            queue.put(state, state.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
            return None
        if decision.send is None:
            return writer.skip(state, _with_error(cast("Skipped", decision.skipped), state), decision.position)
        paused = state.resend and pause is not None and pause.in_force
        if paused or self._past_deadline(state, decision.send, now):
            if state.resend:
                self._abandon(writer, state, queue, dispatcher)
                return None
            return writer.skip(state, whole(decision, state.skip_reason, state.error), decision.position)
        expired = self._expired(state, now)
        if expired is not None:
            return writer.skip(state, *expired)
        if error is not None:
            raise error
        if not self._buildable(state, decision.send, dispatcher):
            self._await_arguments(state, queue, now)
            return None
        began = self._clock.elapsed()
        try:
            with judged_build_errors(dispatcher):
                return self._send(writer, state, decision, decision.send, dispatcher)
        except Declined:
            if state.resend:
                # Its first message may be out.
                self._abandon(writer, state, queue, dispatcher)
                return None
            return writer.skip(state, whole(decision, SkipReason.DECLINED, ""), decision.position)
        except MessageFailed as failed:
            if failed.fault is not BuildFault.MESSAGE:
                self._retry(state, failed, queue, now, self._clock.elapsed() - began)
                return None
            self._emit(events.EntryFailed(state.label, EntryFault.MESSAGE_NOT_BUILT, failed.detail, failed.cause))
            return writer.skip(state, whole(decision, SkipReason.NO_MESSAGE, failed.detail), decision.position)

    def _retry(self, state: EntryState, failed: MessageFailed, queue: DueQueue, now: datetime, took: float) -> None:
        """Build the message again after a pause, which grows with each failure and with the time that it ``took``."""
        refused = failed.fault is BuildFault.DESTINATION
        if not state.build_failures:
            fault = EntryFault.REFUSED if refused else EntryFault.MESSAGE_NOT_BUILT
            self._emit(events.EntryFailed(state.label, fault, failed.detail, failed.cause))
        reason = SkipReason.NOT_PUBLISHED if refused else SkipReason.NO_MESSAGE
        state.record_failure(now, failed.detail, reason)
        pause = max(min(_BUILD_RETRY * 2 ** min(state.build_failures, 9), _LONGEST_BUILD_RETRY), _REST * took)
        state.build_failures += 1
        queue.put(state, state.due_at or now, now + timedelta(seconds=pause))

    def _await_arguments(self, state: EntryState, queue: DueQueue, now: datetime) -> None:
        """Look at an entry again soon. One whose arguments may never come fails, and has a verdict by the deadline."""
        if self._slow.overdue(state.id):
            if not state.build_failures:
                self._emit(events.EntryFailed(state.label, EntryFault.HUNG_ARGUMENTS))
                state.build_failures = 1
            state.record_failure(now, "its arguments have not been computed", SkipReason.NO_MESSAGE)
        queue.put(state, state.due_at or now, now + _ASK_AGAIN)

    def _abandon(self, writer: LedgerWriter, state: EntryState, queue: DueQueue, dispatcher: Dispatcher) -> None:
        """Record an occurrence that cannot be sent again as uncertain, and plan the next one."""
        self._claims.abandon(dispatcher, queue, writer.term, state)
        self._planner.plan(queue, state, writer.now)

    def _send(
        self, writer: LedgerWriter, state: EntryState, decision: Decision, send: datetime, dispatcher: Dispatcher
    ) -> EntryOperation:
        """Return the operation that enqueues an occurrence."""
        entry = state.entry
        occurrence = Occurrence(entry.id, send)
        task_id = occurrence.task_id(self._cluster)
        if state.resend and state.row is not None:
            row = writer.resent(state.row)
        else:
            row = writer.row(state, decision.position, Verdict.ENQUEUED, scheduled_at=send, task_id=task_id)
        epoch = writer.term.epoch
        header = header_of(
            self._cluster,
            entry.id,
            occurrence.instant,
            epoch=epoch,
            run_count=row.run_count,
            busy=task_id if entry.busy_for else "",
        )
        message = self._message(state, send, dispatcher, header, task_id)
        records = [writer.enqueued_record(state, send, task_id)]
        if state.resend:
            records[:0] = self._claims.earlier_records(state.id)
        elif decision.skipped is not None:
            records.insert(0, writer.skip_record(state, decision.skipped))
        operation = Operation(
            entry.id,
            state.expected,
            row.raw,
            tuple(records),
            message,
            task_id=task_id,
            uncertain=entry.uncertain,
            scheduled_ms=round(state.send_at(send).timestamp() * 1000),
            busy_ms=round(entry.busy_for * 1000),
            overlaps=not entry.busy_for or state.resend,
        )
        return EntryOperation(state, operation, row, decision)

    def _buildable(self, state: EntryState, at: datetime, dispatcher: Dispatcher) -> bool:
        """True if the message of an occurrence does not wait for arguments that a thread computes."""
        kept = self._kept.find(state.entry, dispatcher)
        return (kept is not None and kept.is_of(at)) or self._slow.ready(state.entry)

    def _message(
        self, state: EntryState, at: datetime, dispatcher: Dispatcher, header: Mapping[str, Any], task_id: str
    ) -> PreparedMessage:
        """Return the message of an occurrence: the kept one, or else a new one.

        Where no new one can be built, a kept one that was certainly not enqueued takes its place: the task may have
        found what it had reserved for it. One with an expiry or an ETA is built again if that is possible.
        """
        entry = state.entry
        kept = self._kept.find(entry, dispatcher)
        if kept is not None and kept.is_of(at):
            return kept.message.restamped(header)
        (args, kwargs, options), is_slow = self._slow.take(entry)
        if is_slow:
            self._emit(events.EntryFailed(entry.label, EntryFault.SLOW_ARGUMENTS))
        try:
            message = dispatcher.prepare(entry.celery_entry, args, kwargs, with_header(options, header, task_id))
        except Exception:
            if kept is None or not kept.usable_in_place(state, at, (args, kwargs)):
                raise
            message = kept.message.restamped(full_header(options, header, task_id))
        self._kept.keep(state, at, dispatcher, message, (args, kwargs))
        return message

    def _is_due(self, state: EntryState, queue: DueQueue, now: datetime) -> bool:
        """Ask an entry without a recurrence. The time at which it is first found due is its occurrence."""
        if state.failing_since is not None:
            return True
        due, ask_in = self._source.check(state.entry, state.position)
        if due:
            state.due_at, state.ask_in = now, ask_in
        else:
            queue.put(state, now + timedelta(seconds=ask_in))
        return due

    def _past_deadline(self, state: EntryState, send: datetime, now: datetime) -> bool:
        """True if an occurrence could not be enqueued within ``publish_deadline``.

        The deadline counts from the due time. An occurrence that was overdue by more than that at the first attempt, as
        a late catch-up is, gets the whole time from the first attempt.
        """
        deadline = self._options.publish_deadline
        if state.failing_since is None or deadline is None:
            return False
        late, tried = (now - send).total_seconds(), (now - state.failing_since).total_seconds()
        overdue_before = late - tried > deadline
        return tried > deadline if overdue_before else late > deadline

    def _expired(self, state: EntryState, now: datetime) -> tuple[Skipped, datetime] | None:
        """Return the instants past the deadline of an entry whose own code fails, and the last of them.

        Without it an entry that is due more often than the deadline would always try its newest instant, and never give
        a verdict.
        """
        recurrence, first, deadline = state.entry.recurrence, state.due_at, self._options.publish_deadline
        if not state.build_failures or state.resend or recurrence is None or first is None or deadline is None:
            return None
        if not self._past_deadline(state, first, now):
            return None
        due = newest_due(recurrence, first, now - timedelta(seconds=deadline), keep=1)
        until = recurrence.next_after(due.newest)
        return Skipped(first, until, due.count, state.skip_reason, state.error), due.newest


def _with_error(skipped: Skipped, state: EntryState) -> Skipped:
    """Return the skipped instants with the error that kept the entry from building its message, if there was one."""
    if not state.build_failures:
        return skipped
    return replace(skipped, reason=state.skip_reason, detail=state.error)


def _one(decision: Decision, reason: SkipReason, detail: str) -> Skipped:
    """Return the one due instant as a range."""
    until = decision.position + timedelta(microseconds=1)
    return Skipped(decision.position, until, 1, reason, detail[:_MAX_DETAIL])


def whole(decision: Decision, reason: SkipReason, detail: str) -> Skipped:
    """Return the due instant together with those that the decision skips, all skipped for one reason."""
    one, before = _one(decision, reason, detail), decision.skipped
    if before is None:
        return one
    return Skipped(before.first, one.until, before.count + 1 if before.count >= 0 else -1, reason, one.detail)
