"""Submitter: hands batches to the dispatcher, one at a time, and applies the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ha_beat import events
from ha_beat.clock import to_ms
from ha_beat.dispatch import Answer, Dispatcher, FencedOff, Operation
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.leader.batches.batch_builder import SCHEDULE_RETRY
from ha_beat.leader.batches.results import Results
from ha_beat.leader.ledger_writer import EntryOperation
from ha_beat.leader.loading.loaded_schedule import LoadedSchedule
from ha_beat.leader.parts import LeaderParts
from ha_beat.reasons import AnswerKind, EntryFault
from ha_beat.store.lease import Term


@dataclass(slots=True)
class Submission:
    """Batch without an answer. It is submitted again until it has one.

    ``from_queue``: its entries can be judged again. ``unknown``: an attempt may have been carried out.
    """

    operations: Sequence[EntryOperation] = ()
    from_queue: bool = False
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class _Answered:
    """Batch whose answers are not applied yet. ``obstacle`` is why some of its messages were not sent, if known."""

    operations: Sequence[EntryOperation]
    answers: Sequence[Answer]
    obstacle: StoreError | None


class Submitter:
    """Submitter of the batches of one term."""

    def __init__(self, parts: LeaderParts, schedule: LoadedSchedule, results: Results) -> None:
        self._parts = parts
        self._schedule = schedule
        self._results = results
        #: The batch that was submitted and not answered; empty if there is none.
        self._pending = Submission()
        self._answered: _Answered | None = None
        #: True if the last step enqueued a message.
        self.sent = False
        #: Error of the broker and number of entries that could not be sent, from the last step.
        self.broker_failure: tuple[StoreError, int] | None = None

    @property
    def pending(self) -> int:
        """Return the number of operations that were submitted and not answered."""
        return len(self._pending.operations)

    def discard(self) -> None:
        """Discard a batch without an answer."""
        self._take_pending()

    def submit_again(self, term: Term, dispatcher: Dispatcher) -> None:
        """Submit the batch without an answer again. Raises like :meth:`submit`."""
        self._submit(term, dispatcher, self._pending)
        self._apply_answers(term)

    def submit(self, term: Term, dispatcher: Dispatcher, operations: Sequence[EntryOperation]) -> None:
        """Submit a batch, and apply its answers.

        Raises:
            FencedOff: the term is over.
            StoreError: the batch has no answer and stays pending.
        """
        self._submit(term, dispatcher, Submission(operations))
        self._apply_answers(term)

    def submit_due(
        self,
        term: Term,
        dispatcher: Dispatcher,
        operations: Sequence[EntryOperation],
        build: Callable[[], Sequence[EntryOperation]],
    ) -> None:
        """Submit a batch of due entries, and further ones while ``build`` returns any.

        While a batch is under way, the previous batch's answers are applied and the next batch is built. The next one
        is submitted after the answer, so that at most one batch has no answer. Raises like :meth:`submit`.
        """
        following = operations
        error: Exception | None = None

        def meanwhile() -> None:
            nonlocal following, error
            try:
                self._apply_answers(term)
                following = build()
            except Exception as exc:
                # Raised later, because it must not pass for an error of the server.
                self._schedule.reload()
                error = exc

        while following:
            submission, following = Submission(following, from_queue=True), ()
            submitted = False
            try:
                submitted = self._submit(term, dispatcher, submission, meanwhile)
            finally:
                if not submitted:
                    self._put_back(following)
            if not submitted:
                return
        self._apply_answers(term)
        if error is not None:
            raise error

    def isolate_pending(self, error: StoreError, dispatcher: Dispatcher) -> bool:
        """Split a pending batch that fails although Redis answers, for example because one message is too large.

        Returns:
            True if the batch is at fault. Its operations are then submitted one by one.
        """
        suspect = (isinstance(error, StoreUnavailable) and error.acted) or (
            isinstance(error, StoreRefused) and error.unexplained
        )
        if not self._pending.operations or not suspect:
            return False
        try:
            # Any read shows whether Redis answers.
            dispatcher.ledger.notes(["any"])
        except StoreError:
            return False
        self._isolate(self._take_pending(), error)
        return True

    def _submit(
        self, term: Term, dispatcher: Dispatcher, submission: Submission, meanwhile: Callable[[], None] | None = None
    ) -> bool:
        """Submit a batch. Return False if its entries were put back, or are submitted one by one."""
        self._pending = submission
        began = self._parts.clock.elapsed()
        try:
            answers = dispatcher.submit(term, self._stamped(submission.operations), meanwhile)
        except FencedOff as exc:
            count = len(self._take_pending())
            self._schedule.reload()
            self._parts.emit(events.DispatchFenced(term.epoch, count, exc.reason, exc.detail))
            raise
        except StoreError as exc:
            if not self._may_be_judged_again(dispatcher, exc):
                raise
            self._judge_again(self._take_pending(), exc)
            return False
        except Exception as exc:
            self._isolate(self._take_pending(), exc)
            return False
        finally:
            # The previous batch has answers left if the dispatcher has not called ``meanwhile``.
            self._apply_answers(term)
        self._answered = _Answered(self._take_pending(), answers, dispatcher.obstacle)
        mine = sum(answer.kind is AnswerKind.MINE for answer in answers)
        self._parts.emit(events.BatchDispatched(len(answers), self._parts.clock.elapsed() - began, mine))
        return True

    def _stamped(self, operations: Sequence[EntryOperation]) -> list[Operation]:
        """Return the operations as they are submitted now, and note that their messages are submitted."""
        for each in operations:
            if each.sends:
                self._parts.kept.submitted(each.state.id)
        ms = to_ms(self._parts.time.now())
        return [each.operation_at(ms) for each in operations]

    def _apply_answers(self, term: Term) -> None:
        """Apply the answers that are not applied yet."""
        answered, self._answered = self._answered, None
        if answered is None:
            return
        applied = self._results.apply(term, answered.operations, answered.answers, self._schedule.queue)
        self.sent = self.sent or applied.sent
        if applied.follow_up:
            self._schedule.first.append(applied.follow_up)
        if applied.unsent:
            obstacle = answered.obstacle or StoreUnavailable(applied.unsent[-1], acted=False)
            self.broker_failure = obstacle, len(applied.unsent)

    def _may_be_judged_again(self, dispatcher: Dispatcher, error: StoreError) -> bool:
        """True if the pending batch was certainly not carried out. Otherwise it must be submitted unchanged."""
        submission = self._pending
        if isinstance(error, StoreRefused):
            certain = not error.unexplained
        else:
            certain = isinstance(error, StoreUnavailable) and not error.acted
        submission.unknown = submission.unknown or not certain
        if submission.unknown or not submission.from_queue:
            return False
        submission.unknown = not dispatcher.drop_refused([each.operation for each in submission.operations])
        return not submission.unknown

    def _judge_again(self, operations: Sequence[EntryOperation], error: StoreError) -> None:
        """Put entries back: when Redis accepts writes again, some may be too late by their misfire rules."""
        now = self._parts.time.now()
        for each in operations:
            each.state.record_failure(now, str(error))
            self._parts.kept.unsent(each.state.id)
        self._put_back(operations)
        self.broker_failure = (error, len(operations))

    def _take_pending(self) -> Sequence[EntryOperation]:
        """Return the operations of the pending batch, and forget the batch."""
        pending, self._pending = self._pending, Submission()
        return pending.operations

    def _put_back(self, operations: Iterable[EntryOperation]) -> None:
        """Put the entries of operations that were certainly not carried out back into the queue."""
        now = self._parts.time.now()
        for each in operations:
            self._schedule.queue.put(each.state, each.state.due_at or now)

    def _isolate(self, operations: Sequence[EntryOperation], exc: Exception) -> None:
        """Submit the operations of a failed batch one by one. A single operation is at fault, and retried later."""
        if len(operations) > 1:
            self._schedule.first.extendleft((each,) for each in reversed(operations))
            return
        state, now = operations[0].state, self._parts.time.now()
        failed = events.EntryFailed.raised(state.label, EntryFault.NOT_SUBMITTED, exc)
        self._parts.emit(failed)
        if state.entry.celery_entry is not None:
            state.record_failure(now, failed.detail)
            self._schedule.queue.put(state, state.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
