"""Batch builder: turns due entries into operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

from ha_beat import events
from ha_beat.budget import Budget
from ha_beat.dispatch import Dispatcher, MessageFailed, PreparedMessage, judged_build_errors
from ha_beat.dispatch.messages.build import Declined
from ha_beat.errors import StoreError
from ha_beat.headers import full_header, with_header
from ha_beat.leader.batches.build_retries import BuildRetries
from ha_beat.leader.batches.prepared import PreparedOccurrences
from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Planner
from ha_beat.reasons import BuildFault, EntryFault, SkipReason
from ha_beat.schedule.misfire import Decision, Skipped

#: Seconds until an entry whose schedule raises is asked again.
SCHEDULE_RETRY = 60.0

#: Characters of messages that fill a batch. Redis is busy with them for up to 15 ms.
BATCH_CHARACTERS = 2_000_000

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


@dataclass(frozen=True, slots=True)
class _Turn:
    """Objects with which one batch is built."""

    writer: LedgerWriter
    queue: DueQueue
    dispatcher: Dispatcher


class BatchBuilder:
    """Builder of the batches of one term."""

    def __init__(self, parts: LeaderParts, planner: Planner, claims: OpenClaims, slow: SlowArguments) -> None:
        self._parts = parts
        self._planner = planner
        self._claims = claims
        self._slow = slow
        self._retries = BuildRetries(parts.options.publish_deadline, parts.emit)
        self.prepared = PreparedOccurrences(parts)

    def build(self, writer: LedgerWriter, queue: DueQueue, dispatcher: Dispatcher, budget: Budget) -> Batch:
        """Build a batch of due entries, as many as the budget allows, but at least one.

        Once the broker fails, add only entries that need no message.
        """
        turn, batch, room = _Turn(writer, queue, dispatcher), Batch(), BATCH_CHARACTERS
        popped = queue.pop_due(writer.now, min(self._parts.options.batch_size, dispatcher.capacity))
        if popped and self.prepared:
            self.prepared.read_recipes(dispatcher)
        for number, state in enumerate(popped):
            if room <= 0 or (number and budget.spent):
                for left in popped[number:]:
                    # Not at its due time: an entry with a backlog would precede the others in each batch.
                    queue.put(left, left.due_at or writer.now, writer.now)
                break
            state.tried_at = writer.now
            try:
                operation = self._operation(turn, state, batch.error)
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

    def _operation(self, turn: _Turn, state: EntryState, error: StoreError | None) -> EntryOperation | None:
        """Return the operation for a due entry, or ``None`` if the entry was put back into the queue.

        Raises:
            StoreError: the broker failed, now or with ``error`` before.
        """
        writer, now = turn.writer, turn.writer.now
        try:
            if state.entry.recurrence is None and not state.resend and not self._is_due(turn, state):
                return None
            pause = self._parts.pause.entries.get(state.id)
            decision = state.decide(now, pause)
        except Exception as exc:
            self._parts.emit(events.EntryFailed.raised(state.label, EntryFault.SCHEDULE_RAISES, exc))
            turn.queue.put(state, state.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
            return None
        if decision.send is None:
            return writer.skip(state, _with_error(cast("Skipped", decision.skipped), state), decision.position)
        late = self._retries.past_deadline(state, decision.send, now)
        paused = state.resend and pause is not None and pause.in_force  # guard: pause-no-resend
        if paused or (late and state.resend):
            self._abandon(turn, state)
            return None
        if late:
            return writer.skip(state, whole(decision, late.skip_reason, late.error), decision.position)
        expired = self._retries.expired(state, now)
        if expired is not None:
            return writer.skip(state, *expired)
        if error is not None:
            raise error
        prepared = self.prepared.take(writer, state, decision, turn.dispatcher)
        return prepared or self._built(turn, state, decision, decision.send)

    def _built(self, turn: _Turn, state: EntryState, decision: Decision, at: datetime) -> EntryOperation | None:
        """Return an operation that enqueues or skips the occurrence due ``at``; ``None`` if it is tried again."""
        writer, dispatcher, now = turn.writer, turn.dispatcher, turn.writer.now
        kept = self._parts.kept.find(state.entry, dispatcher)
        if not (kept is not None and kept.is_of(at)) and not self._slow.ready(state.entry):
            self._retries.await_arguments(state, turn.queue, now, hung=self._slow.overdue(state.id))
            return None

        def build(header: Mapping[str, Any], task_id: str) -> PreparedMessage:
            return self._message(state, at, dispatcher, header, task_id)

        earlier = self._claims.earlier_records(state.id) if state.resend else ()
        began = self._parts.clock.elapsed()
        try:
            with judged_build_errors(dispatcher):
                return writer.enqueue(state, decision, self._parts.cluster, build, earlier)
        except Declined:
            if state.resend:
                # The first message of the occurrence may have been enqueued.
                self._abandon(turn, state)
                return None
            return writer.skip(state, whole(decision, SkipReason.DECLINED, ""), decision.position)
        except MessageFailed as failed:
            if failed.fault is not BuildFault.MESSAGE:
                self._retries.retry(state, failed, turn.queue, now, self._parts.clock.elapsed() - began)
                return None
            self._parts.emit(events.EntryFailed(state.label, EntryFault.MESSAGE_NOT_BUILT, failed.detail, failed.cause))
            return writer.skip(state, whole(decision, SkipReason.NO_MESSAGE, failed.detail), decision.position)

    def _abandon(self, turn: _Turn, state: EntryState) -> None:
        """Record an occurrence that cannot be sent again as uncertain, and plan the next one."""
        self._claims.record_resend_uncertain(turn.dispatcher, turn.queue, turn.writer.term, state)
        self._planner.plan(turn.queue, state, turn.writer.now)

    def _message(
        self, state: EntryState, at: datetime, dispatcher: Dispatcher, header: Mapping[str, Any], task_id: str
    ) -> PreparedMessage:
        """Return the message of an occurrence: the kept one, or else a new one.

        If no new one can be built, use a kept message that was certainly not enqueued: the task may have found what it
        reserved for that message. A kept message with an expiry or an ETA is built again if possible.
        """
        entry = state.entry
        kept = self._parts.kept.find(entry, dispatcher)
        if kept is not None and kept.is_of(at):
            return kept.message.restamped(header)
        (args, kwargs, options), is_slow = self._slow.take(entry)
        if is_slow:
            self._parts.emit(events.EntryFailed(entry.label, EntryFault.SLOW_ARGUMENTS))
        try:
            message = dispatcher.prepare(entry.celery_entry, args, kwargs, with_header(options, header, task_id))
        except Exception:
            if kept is None or not kept.usable_in_place(state, at, (args, kwargs)):
                raise
            message = kept.message.restamped(full_header(options, header, task_id))
        self._parts.kept.keep(state, at, dispatcher, message, (args, kwargs))
        return message

    def _is_due(self, turn: _Turn, state: EntryState) -> bool:
        """True if an entry without a recurrence is due. Its occurrence is the time at which it is first found due."""
        if state.failure is not None:
            return True
        now = turn.writer.now
        due, ask_in = self._parts.source.ask_if_due(state.entry, state.position)
        if due:
            state.due_at, state.ask_in = now, ask_in
        else:
            turn.queue.put(state, now + timedelta(seconds=ask_in))
        return due


def _with_error(skipped: Skipped, state: EntryState) -> Skipped:
    """Return the skipped instants, with the entry's last error if its message could not be built."""
    failure = state.failure
    if failure is None or not failure.builds:
        return skipped
    return replace(skipped, reason=failure.skip_reason, detail=failure.error)


def whole(decision: Decision, reason: SkipReason, detail: str) -> Skipped:
    """Return the due instant together with those that the decision skips, all skipped for one reason."""
    at, before = decision.position, decision.skipped
    until, detail = at + timedelta(microseconds=1), detail[:_MAX_DETAIL]
    if before is None:
        return Skipped(at, until, 1, reason, detail)
    return Skipped(before.first, until, before.count + 1 if before.count >= 0 else -1, reason, detail)
