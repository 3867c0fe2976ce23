"""One term of the leader: load the schedule, then dispatch what is due, batch by batch.

A batch whose reply was lost is submitted again unchanged, which is safe. When the term ends, this object is discarded
together with such a batch, and the next leader reads the outcome from the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ha_beat import events
from ha_beat.clock import to_ms
from ha_beat.dispatch import Answer, Dispatcher, FencedOff
from ha_beat.election.leader_handle import Tenure
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.leader.batch_builder import SCHEDULE_RETRY, BatchBuilder
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loaded_schedule import LoadedSchedule
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Planner
from ha_beat.leader.recovery import Recovery
from ha_beat.leader.results import Results
from ha_beat.leader.schedule_loader import ScheduleLoader
from ha_beat.leader.slow_arguments import SlowArguments
from ha_beat.reasons import AnswerKind, EntryFault
from ha_beat.store.lease import Term


@dataclass(slots=True)
class _Submission:
    """Batch that is submitted until it has an answer.

    ``from_queue``: its entries can be judged again. ``unknown``: an attempt may have been carried out.
    """

    operations: Sequence[EntryOperation] = ()
    from_queue: bool = False
    unknown: bool = False


class LeaderTerm:
    """Work of one term. Used by the main loop only.

    It has more than 15 methods, since it is where the steps of the leader's work meet.
    """

    def __init__(
        self, parts: LeaderParts, tenure: Tenure, slow: SlowArguments, dispatcher: Dispatcher | None = None
    ) -> None:
        """``dispatcher`` is the one of the previous term. It confirms late until this term chooses its own."""
        self._parts = parts
        self._tenure = tenure
        self._planner = Planner(parts.source, parts.emit)
        self._claims = OpenClaims(parts.clock, parts.emit, parts.options.claim_in_flight_for)
        self._builder = BatchBuilder(parts, self._planner, self._claims, slow)
        self._results = Results(parts, self._planner, self._claims)
        self._recovery = Recovery(tenure, parts.shadow)
        loader = ScheduleLoader(parts, tenure, self._planner, self._claims, self._recovery)
        self.schedule = LoadedSchedule(loader, parts.clock)
        self.dispatcher = dispatcher
        #: The batch that was submitted and not answered; empty if there is none.
        self._pending = _Submission()
        #: True if the last step enqueued a message.
        self.sent = False
        #: Error of the broker and number of entries that could not be sent, from the last step.
        self.broker_failure: tuple[StoreError, int] | None = None

    @property
    def nonce(self) -> str:
        """Return the nonce of the term."""
        return self._tenure.nonce

    @property
    def pending(self) -> int:
        """Return the number of operations that were submitted and not answered."""
        return len(self._pending.operations)

    def unload(self) -> None:
        """Discard the queue, and a batch without an answer."""
        self.schedule.unload()
        self._pending = _Submission()
        self._builder.prepared.clear()

    def step(self, term: Term) -> float:
        """Submit what comes first; else load more and submit a batch of due entries.

        Returns:
            For how many seconds nothing is due; 0 if there may be more.

        Raises:
            FencedOff: the term is over.
            StoreError: the batch has no answer and stays pending, or the ledger could not be read.
        """
        self.sent, self.broker_failure = False, None
        schedule = self.schedule
        if self._pending.operations:
            self._submit(term, self._pending)
            return 0.0
        if not schedule.loaded:
            self._load(term)
        dispatcher = self._chosen(term)
        taken_back = self._claims.settle_stale(dispatcher, schedule.queue, term, held_back=schedule.held_back)
        if taken_back:
            schedule.read_again(taken_back)
        schedule.release_held()
        if schedule.first:
            self._submit(term, _Submission(schedule.first.popleft()))
            return 0.0
        if not schedule.held:
            self._recovery.finish(dispatcher.ledger, term)
        schedule.load_more(term, dispatcher)
        if schedule.first:
            # One part of a large schedule, so that due entries have their turn between two.
            self._submit(term, _Submission(schedule.first.popleft()))
        if schedule.behind or schedule.first:
            return 0.0
        pause = self._parts.pause
        # Known from an earlier term, an entry's pause may have ended, or begun.
        if pause.in_force or pause.must_be_read(term):  # guard: pause-read-first
            return float("inf") if schedule.up_to_date else 0.0
        if self._submit_due(term, dispatcher) or not schedule.up_to_date:
            return 0.0
        due_at = schedule.queue.next_due()
        idle = max((due_at - self._parts.time.now()).total_seconds(), 0.0) if due_at else float("inf")
        return 0.0 if self._builder.prepared.prepare(term, schedule.queue, dispatcher, idle) else idle

    def isolate_pending(self, error: StoreError) -> bool:
        """Take apart a pending batch that fails although Redis answers, for example because one message is too large.

        Returns:
            True if the batch is at fault. Its operations are then submitted one by one.
        """
        suspect = (isinstance(error, StoreUnavailable) and error.acted) or (
            isinstance(error, StoreRefused) and error.unexplained
        )
        if not self._pending.operations or self.dispatcher is None or not suspect:
            return False
        try:
            self.dispatcher.ledger.notes(["any"])
        except StoreError:
            return False
        operations, self._pending = self._pending.operations, _Submission()
        self._isolate(operations, error)
        return True

    def _chosen(self, term: Term) -> Dispatcher:
        if self.dispatcher is None:
            self.dispatcher = self._parts.choose_dispatcher(term)
        return self.dispatcher

    def _load(self, term: Term) -> None:
        self._pending = _Submission()
        self._builder.prepared.clear()
        self.dispatcher = dispatcher = self._parts.choose_dispatcher(term)
        dispatcher.take_back(term)  # guard: claim-unsent-first
        self.schedule.load(term, dispatcher)

    # --- Submitting

    def _submit_due(self, term: Term, dispatcher: Dispatcher) -> bool:
        """Submit a batch of due entries. Return False if there is none."""
        queue, time = self.schedule.queue, self._parts.time
        writer = LedgerWriter(term, time.now())
        batch = self._builder.build(writer, queue, dispatcher, self._parts.pace.begin())
        if batch.out_of_time:
            queue.put_behind(writer.now, time.now())
        if batch.error is not None:
            self.broker_failure = (batch.error, len(batch.waiting))
        if batch.operations:
            self._submit(term, _Submission(batch.operations, from_queue=True))
        return bool(batch.operations)

    def _submit(self, term: Term, submission: _Submission) -> None:
        self._pending, operations = submission, submission.operations
        parts, dispatcher = self._parts, self._chosen(term)
        began = parts.clock.elapsed()
        accepted_ms = to_ms(parts.time.now())
        for each in operations:
            if each.sends:
                parts.kept.submitted(each.state.id)
        try:
            answers = dispatcher.submit(term, [each.operation_at(accepted_ms) for each in operations])
        except FencedOff as exc:
            self._pending = _Submission()
            self.schedule.reload()
            parts.emit(events.DispatchFenced(term.epoch, len(operations), exc.reason, exc.detail))
            raise
        except StoreError as exc:
            if not self._judge_again(dispatcher, exc):
                raise
            return
        except Exception as exc:
            self._pending = _Submission()
            self._isolate(operations, exc)
            return
        self._pending = _Submission()
        mine = sum(answer.kind is AnswerKind.MINE for answer in answers)
        parts.emit(events.BatchDispatched(len(answers), parts.clock.elapsed() - began, mine))
        self._apply(term, operations, answers)

    def _judge_again(self, dispatcher: Dispatcher, error: StoreError) -> bool:
        """Put the entries of a batch that was certainly not carried out back into the queue.

        By the time at which Redis accepts writes again, some may be too late by their misfire rules. Return False if
        the batch must be submitted unchanged.
        """
        submission = self._pending
        if isinstance(error, StoreRefused):
            certain = not error.unexplained
        else:
            certain = isinstance(error, StoreUnavailable) and not error.acted
        submission.unknown = submission.unknown or not certain
        if submission.unknown or not submission.from_queue:
            return False
        if not dispatcher.drop_refused([each.operation for each in submission.operations]):
            submission.unknown = True
            return False
        now = self._parts.time.now()
        for each in submission.operations:
            each.state.record_failure(now, str(error))
            self._parts.kept.unsent(each.state.id)
            self.schedule.queue.put(each.state, each.state.due_at or now)
        self._pending = _Submission()
        self.broker_failure = (error, len(submission.operations))
        return True

    def _apply(self, term: Term, operations: Sequence[EntryOperation], answers: Sequence[Answer]) -> None:
        applied = self._results.apply(term, operations, answers, self.schedule.queue)
        self.sent = self.sent or applied.sent
        if applied.follow_up:
            self.schedule.first.append(applied.follow_up)
        if applied.unsent:
            obstacle = self.dispatcher.obstacle if self.dispatcher is not None else None
            self.broker_failure = (obstacle or StoreUnavailable(applied.unsent[-1], acted=False), len(applied.unsent))

    def _isolate(self, operations: Sequence[EntryOperation], exc: Exception) -> None:
        """Submit the operations of a failed batch one by one; a single one is at fault and retried later."""
        if len(operations) > 1:
            self.schedule.first.extendleft((each,) for each in reversed(operations))
            return
        state, now = operations[0].state, self._parts.time.now()
        failed = events.EntryFailed.raised(state.label, EntryFault.NOT_SUBMITTED, exc)
        self._parts.emit(failed)
        if state.entry.celery_entry is not None:
            state.record_failure(now, failed.detail)
            self.schedule.queue.put(state, state.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
