"""Submitter: hands batches to the dispatcher, one at a time, and applies the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ha_beat import events
from ha_beat.clock import to_ms
from ha_beat.dispatch import Answer, Dispatcher, FencedOff
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
    """Batch that is submitted until it has an answer.

    ``from_queue``: its entries can be judged again. ``unknown``: an attempt may have been carried out.
    """

    operations: Sequence[EntryOperation] = ()
    from_queue: bool = False
    unknown: bool = False


class Submitter:
    """Submitter of the batches of one term."""

    def __init__(self, parts: LeaderParts, schedule: LoadedSchedule, results: Results) -> None:
        self._parts = parts
        self._schedule = schedule
        self._results = results
        #: The batch that was submitted and not answered; empty if there is none.
        self._pending = Submission()
        #: The batch whose answers are to be applied, its answers, and its dispatcher.
        self._answered: tuple[Sequence[EntryOperation], Sequence[Answer], Dispatcher] | None = None
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
        self._pending = Submission()

    def submit_again(self, term: Term, dispatcher: Dispatcher) -> None:
        """Submit the batch without an answer again. Raises like :meth:`submit`."""
        self._submit(term, dispatcher, self._pending, None)
        self.settle(term)

    def submit(self, term: Term, dispatcher: Dispatcher, operations: Sequence[EntryOperation]) -> None:
        """Submit a batch, and apply its answers.

        Raises:
            FencedOff: the term is over.
            StoreError: the batch has no answer and stays pending.
        """
        self._submit(term, dispatcher, Submission(operations), None)
        self.settle(term)

    def submit_due(
        self,
        term: Term,
        dispatcher: Dispatcher,
        operations: Sequence[EntryOperation],
        build: Callable[[], Sequence[EntryOperation]],
    ) -> None:
        """Submit a batch of due entries, and further ones while ``build`` returns any.

        While a batch is under way, the answers to the one before are applied and the next is built. It is submitted
        once there is an answer, so that there is one batch without an answer at most. Raises like :meth:`submit`.
        """
        following = operations

        def meanwhile() -> None:
            nonlocal following
            self.settle(term)
            following = build()

        while following:
            submission, following = Submission(following, from_queue=True), ()
            try:
                answered = self._submit(term, dispatcher, submission, meanwhile)
            except BaseException:
                self._put_back(following)
                raise
            if not answered:
                self._put_back(following)
                return
        self.settle(term)

    def settle(self, term: Term) -> None:
        """Apply answers that are not applied yet."""
        answered, self._answered = self._answered, None
        if answered is None:
            return
        operations, answers, dispatcher = answered
        applied = self._results.apply(term, operations, answers, self._schedule.queue)
        self.sent = self.sent or applied.sent
        if applied.follow_up:
            self._schedule.first.append(applied.follow_up)
        if applied.unsent:
            obstacle = dispatcher.obstacle or StoreUnavailable(applied.unsent[-1], acted=False)
            self.broker_failure = obstacle, len(applied.unsent)

    def isolate_pending(self, error: StoreError, dispatcher: Dispatcher) -> bool:
        """Take apart a pending batch that fails although Redis answers, for example because one message is too large.

        Returns:
            True if the batch is at fault. Its operations are then submitted one by one.
        """
        suspect = (isinstance(error, StoreUnavailable) and error.acted) or (
            isinstance(error, StoreRefused) and error.unexplained
        )
        if not self._pending.operations or not suspect:
            return False
        try:
            dispatcher.ledger.notes(["any"])
        except StoreError:
            return False
        operations, self._pending = self._pending.operations, Submission()
        self._isolate(operations, error)
        return True

    def _submit(
        self, term: Term, dispatcher: Dispatcher, submission: Submission, meanwhile: Callable[[], None] | None
    ) -> bool:
        """Submit a batch. Return False if its entries were put back, or are submitted one by one."""
        self._pending, operations = submission, submission.operations
        parts, raised = self._parts, list[Exception]()
        began = parts.clock.elapsed()
        accepted_ms = to_ms(parts.time.now())
        for each in operations:
            if each.sends:
                parts.kept.submitted(each.state.id)

        def work() -> None:
            try:
                if meanwhile is not None:
                    meanwhile()
            except Exception as exc:
                # It must not pass for an error of the server. What it left undone is read from the ledger again.
                self._schedule.reload()
                raised.append(exc)

        try:
            answers = dispatcher.submit(term, [each.operation_at(accepted_ms) for each in operations], work)
        except FencedOff as exc:
            self._pending = Submission()
            self._schedule.reload()
            parts.emit(events.DispatchFenced(term.epoch, len(operations), exc.reason, exc.detail))
            raise
        except StoreError as exc:
            if not self._judge_again(dispatcher, exc):
                raise
            return False
        except Exception as exc:
            self._pending = Submission()
            self._isolate(operations, exc)
            return False
        finally:
            # The answers to the batch before, if the dispatcher did not let them be applied meanwhile.
            self.settle(term)
        self._pending = Submission()
        mine = sum(answer.kind is AnswerKind.MINE for answer in answers)
        parts.emit(events.BatchDispatched(len(answers), parts.clock.elapsed() - began, mine))
        self._answered = operations, answers, dispatcher
        if raised:
            self.settle(term)
            raise raised[0]
        return True

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
        self._put_back(submission.operations)
        self._pending = Submission()
        self.broker_failure = (error, len(submission.operations))
        return True

    def _put_back(self, operations: Iterable[EntryOperation]) -> None:
        """Put entries back into the queue whose operations were not submitted, or certainly not carried out."""
        now = self._parts.time.now()
        for each in operations:
            self._schedule.queue.put(each.state, each.state.due_at or now)

    def _isolate(self, operations: Sequence[EntryOperation], exc: Exception) -> None:
        """Submit the operations of a failed batch one by one; a single one is at fault and retried later."""
        if len(operations) > 1:
            self._schedule.first.extendleft((each,) for each in reversed(operations))
            return
        state, now = operations[0].state, self._parts.time.now()
        failed = events.EntryFailed.raised(state.label, EntryFault.NOT_SUBMITTED, exc)
        self._parts.emit(failed)
        if state.entry.celery_entry is not None:
            state.record_failure(now, failed.detail)
            self._schedule.queue.put(state, state.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
