"""One term of the leader: load the schedule, then dispatch what is due, batch by batch.

A batch whose reply was lost is submitted again unchanged, which is safe. When the term ends, this object is discarded
together with such a batch, and the next leader reads the outcome from the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ha_beat import events
from ha_beat.dispatch import Answer, Dispatcher, FencedOff
from ha_beat.election.leader_handle import Tenure
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.leader.batch_builder import SCHEDULE_RETRY, BatchBuilder, whole
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.gc_pause import gc_paused
from ha_beat.leader.gradual_load import PART_BUDGET, GradualLoad
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import EVERYTHING, Planner, ScheduleChange
from ha_beat.leader.recovery import Recovery
from ha_beat.leader.results import Results
from ha_beat.leader.schedule_loader import ScheduleLoader, keep_deadlines
from ha_beat.leader.slow_arguments import SlowArguments
from ha_beat.reasons import AnswerKind, EntryFault, SkipReason
from ha_beat.store.lease import Term

_T = TypeVar("_T")


@dataclass(slots=True)
class _Submission:
    """Batch that is submitted until it has an answer.

    ``from_queue``: its entries can be judged again. ``unknown``: an attempt may have been carried out.
    """

    operations: Sequence[EntryOperation] = ()
    from_queue: bool = False
    unknown: bool = False


class LeaderTerm:
    """Work of one term. Used by the main loop only."""

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
        self._loader = ScheduleLoader(parts, tenure, self._planner, self._claims, self._recovery)
        self.dispatcher = dispatcher
        #: The batch that was submitted and not answered; empty if there is none.
        self._pending = _Submission()
        #: Batches that come before due entries: the rows that the ledger needs first, and the operations of a batch
        #: that failed as a whole, one by one to find the one at fault.
        self._first: deque[Sequence[EntryOperation]] = deque()
        #: Operations of the reconciliation that wait until the entry's claimed occurrence was sent again, by entry.
        self._held: dict[str, EntryOperation] = {}
        self.queue = DueQueue()
        #: True if the queue holds the schedule and the ledger as last read, except for the :attr:`_rest`.
        self.loaded = False
        #: Entries that are not loaded yet, and whether the next ones are to be loaded before the next batch.
        self._rest: GradualLoad | None = None
        self._load_next = False
        #: Entries whose change is not in the queue yet.
        self._changed: frozenset[str] = frozenset()
        #: True if some entries wait until the schedule has been read under this term.
        self.held_back = False
        #: True if the last batch enqueued a message.
        self.sent = False
        #: Error of the broker and number of entries that could not be sent, from the last batch.
        self.broker_failure: tuple[StoreError, int] | None = None

    @property
    def nonce(self) -> str:
        """Return the nonce of the term."""
        return self._tenure.nonce

    @property
    def complete(self) -> bool:
        """True if the queue holds all entries."""
        return self.loaded and self._rest is None

    @property
    def pending(self) -> int:
        """Return the number of operations that were submitted and not answered."""
        return len(self._pending.operations)

    def reload(self, change: ScheduleChange = EVERYTHING) -> None:
        """Read what has changed of the schedule, and its rows in the ledger, before the next batch."""
        if change.ids is None:
            self.loaded = False
        else:
            self._changed |= change.ids

    def unload(self) -> None:
        """Discard the queue, so that its entries are not reported as overdue, and a batch without an answer."""
        self.queue, self.loaded, self._pending, self._rest = DueQueue(), False, _Submission(), None

    def step(self, term: Term) -> float:
        """Submit one batch. Return for how many seconds nothing is due; 0 if there may be more.

        Raises:
            FencedOff: the term is over.
            StoreError: the batch has no answer and stays pending, or the ledger could not be read.
        """
        self.sent, self.broker_failure = False, None
        if self._pending.operations:
            self._submit(term, self._pending)
            return 0.0
        if not self.loaded:
            with gc_paused():
                self._load(term)
        dispatcher = self._chosen(term)
        if self._claims.settle_stale(dispatcher, self.queue, term, held_back=self.held_back):
            self.reload()
            return 0.0
        self._release_held()
        submission = _Submission(self._first.popleft() if self._first else ())
        if not submission.operations:
            if not self._held:
                self._recovery.finish(dispatcher.ledger, term)
            if self._load_more(term, dispatcher):
                return 0.0
            pause = self._parts.pause
            # Known from an earlier term, an entry's pause may have ended, or begun.
            if pause.in_force or pause.must_be_read(term):  # guard: pause-read-first
                return 0.0 if self._rest is not None else float("inf")
            writer, budget = LedgerWriter(term, self._parts.time.now()), self._parts.pace.begin()
            batch = self._builder.build(writer, self.queue, dispatcher, budget)
            submission = _Submission(batch.operations, from_queue=True)
            if batch.out_of_time:
                self.queue.put_behind(writer.now, self._parts.time.now())
            if batch.error is not None:
                self.broker_failure = (batch.error, len(batch.waiting))
        if submission.operations:
            self._submit(term, submission)
            return 0.0
        if self._rest is not None:
            return 0.0
        due_at = self.queue.next_due()
        return max((due_at - self._parts.time.now()).total_seconds(), 0.0) if due_at else float("inf")

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

    # --- Loading

    def _load(self, term: Term) -> None:
        """Fill the queue: each entry at its position by the ledger."""
        self._pending = _Submission()
        self.dispatcher = dispatcher = self._parts.choose_dispatcher(term)
        dispatcher.take_back(term)  # guard: claim-withdrawn-first
        loaded = self._loader.load(term, dispatcher)
        keep_deadlines(self.queue.entries(), loaded.queue)
        self.queue, self._first, self._held, self.held_back = loaded.queue, loaded.first, loaded.held, loaded.held_back
        self.loaded, self._changed, self._rest, self._load_next = True, frozenset(), loaded.rest, False

    def _load_more(self, term: Term, dispatcher: Dispatcher) -> bool:
        """Load what has changed or is missing in the queue. Return True if it has to be submitted before due entries.

        Between two parts of a large schedule, due entries have their turn.
        """
        if self._changed:
            self._load_changed(term, dispatcher)
            return True
        rest, self._load_next = self._rest, not self._load_next
        if rest is None:
            self._first = self._loader.drop_old_rows(term, dispatcher, self.queue)
            return bool(self._first)
        if self._load_next:
            return False
        until = self._parts.clock.elapsed() + PART_BUDGET
        while rest is not None and not self._first:
            try:
                with gc_paused():
                    loaded = self._loader.load_part(term, dispatcher, rest, self.queue)
            except StoreError:
                # The entries of this part have been taken off the rest.
                self.reload()  # guard: gradual-part-unread
                raise
            if loaded is None:
                self.reload()
                break
            self._first, self.held_back, rest = loaded.first, self.held_back or loaded.held_back, loaded.rest
            self._rest = rest
            if self._parts.clock.elapsed() >= until:
                break
        return True

    def _load_changed(self, term: Term, dispatcher: Dispatcher) -> None:
        """Bring the entries that have changed up to date, or have all read again while claims are resent."""
        found = None if self._held else self._loader.load_changed(term, dispatcher, self._changed, self.queue)
        if found is None:
            self.reload()
            return
        self._first, self.held_back = found.first, self.held_back or found.held_back
        if self._rest is not None:
            self._rest.seen |= self._changed
        self._changed = frozenset()

    def _chosen(self, term: Term) -> Dispatcher:
        if self.dispatcher is None:
            self.dispatcher = self._parts.choose_dispatcher(term)
        return self.dispatcher

    # --- Submitting

    def _submit(self, term: Term, submission: _Submission) -> None:
        self._pending, operations = submission, submission.operations
        parts, dispatcher = self._parts, self._chosen(term)
        began = parts.clock.elapsed()
        accepted_at = parts.time.now()
        for each in operations:
            if each.sends:
                parts.kept.submitted(each.state.id)
        try:
            answers = dispatcher.submit(term, [each.operation_at(accepted_at) for each in operations])
        except FencedOff as exc:
            self._pending = _Submission()
            self.reload()
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
            self.queue.put(each.state, each.state.due_at or now)
        self._pending = _Submission()
        self.broker_failure = (error, len(submission.operations))
        return True

    def _apply(self, term: Term, operations: Sequence[EntryOperation], answers: Sequence[Answer]) -> None:
        now = self._parts.time.now()
        writer, overlapping = LedgerWriter(term, now), []
        for done, answer in zip(operations, answers, strict=True):
            self._results.apply(done, answer, self.queue, now)
            self._parts.pace.progress()
            match answer.kind:
                case AnswerKind.DONE | AnswerKind.MINE | AnswerKind.PARTIAL if done.sends:
                    self.sent = True
                case AnswerKind.OVERLAP if done.decision is not None:
                    decision = done.decision
                    skipped = whole(decision, SkipReason.OVERLAP, "")
                    overlapping.append(writer.skip(done.state, skipped, decision.position))
                case AnswerKind.PAUSED if answer.detail:
                    self._parts.pause.invalidate()
                case AnswerKind.PAUSED | AnswerKind.WITHDRAWN:
                    self._parts.pause.refused = True
                case _:
                    pass
        if overlapping:
            self._first.append(overlapping)
        unsent = [answer.detail for answer in answers if answer.kind is AnswerKind.UNSENT]
        if unsent:
            obstacle = self.dispatcher.obstacle if self.dispatcher is not None else None
            self.broker_failure = (obstacle or StoreUnavailable(unsent[-1], acted=False), len(unsent))

    def _release_held(self) -> None:
        """Submit next what waited for a claimed occurrence that has its verdict by now."""
        released = [each for each in self._held.values() if not each.state.resend]
        if released:
            self._held = {each.state.id: each for each in self._held.values() if each.state.resend}
            self._first.append([each.after(each.state.expected) for each in released])

    def _isolate(self, operations: Sequence[EntryOperation], exc: Exception) -> None:
        """Submit the operations of a failed batch one by one; a single one is at fault and retried later."""
        if len(operations) > 1:
            self._first.extendleft((each,) for each in reversed(operations))
            return
        state, now = operations[0].state, self._parts.time.now()
        failed = events.EntryFailed.raised(state.label, EntryFault.NOT_SUBMITTED, exc)
        self._parts.emit(failed)
        if state.entry.celery_entry is not None:
            state.record_failure(now, failed.detail)
            self.queue.put(state, state.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
