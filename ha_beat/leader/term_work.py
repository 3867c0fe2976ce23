"""One term of the leader: load the schedule, then dispatch what is due, batch by batch.

A batch whose reply was lost is submitted again unchanged, which is safe. When the term ends, its object is discarded
together with such a batch, and the next leader reads the outcome from the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence

from ha_beat.dispatch import Dispatcher
from ha_beat.election.leader_handle import TermOrigin
from ha_beat.errors import StoreError
from ha_beat.leader.batches.batch_builder import BatchBuilder
from ha_beat.leader.batches.results import Results
from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.leader.batches.submitter import Submitter
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.loaded_schedule import LoadedSchedule
from ha_beat.leader.loading.recovery import Recovery
from ha_beat.leader.loading.schedule_loader import ScheduleLoader
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Planner
from ha_beat.store.lease import Term

#: Seconds in which batches of prepared occurrences may follow one another. Then requests are served.
_BURST_TURN = 0.05


class TermWork:
    """Work of one term. Used by the main loop only."""

    def __init__(
        self, parts: LeaderParts, origin: TermOrigin, slow: SlowArguments, dispatcher: Dispatcher | None = None
    ) -> None:
        """``dispatcher`` is the previous term's. Late confirmations go through it until this term chooses another."""
        self._parts = parts
        self._origin = origin
        self._planner = Planner(parts.source, parts.emit)
        self._claims = OpenClaims(parts.clock, parts.emit, parts.options.claim_in_flight_for)
        self._builder = BatchBuilder(parts, self._planner, self._claims, slow)
        self._recovery = Recovery(origin, parts.shadow)
        loader = ScheduleLoader(parts, origin, self._planner, self._claims, self._recovery)
        self.schedule = LoadedSchedule(loader, parts.clock)
        self.submitter = Submitter(parts, self.schedule, Results(parts, self._planner, self._claims))
        self.dispatcher = dispatcher

    @property
    def nonce(self) -> str:
        """Return the nonce of the term."""
        return self._origin.nonce

    def unload(self) -> None:
        """Discard the queue, and a batch without an answer."""
        self.schedule.unload()
        self.submitter.discard()
        self._builder.prepared.clear()

    def step(self, term: Term) -> float:
        """Submit operations that come before due entries; if there are none, submit a batch of due entries.

        Returns:
            For how many seconds nothing is due; 0 if there may be more to do.

        Raises:
            FencedOff: the term is over.
            StoreError: the batch has no answer and stays pending, or the ledger could not be read.
        """
        submitter, schedule = self.submitter, self.schedule
        submitter.sent, submitter.broker_failure = False, None
        if submitter.pending:
            submitter.submit_again(term, self._chosen(term))
            return 0.0
        if not schedule.loaded:
            self._load(term)
        dispatcher = self._chosen(term)
        if self._catch_up(term, dispatcher):
            return 0.0
        if self._paused(term):
            return float("inf") if schedule.up_to_date else 0.0
        if self._submit_due(term, dispatcher) or not schedule.up_to_date:
            return 0.0
        if self._builder.prepared.prepare(term, schedule.queue, dispatcher, self._idle()):
            return 0.0
        return self._idle()

    def _catch_up(self, term: Term, dispatcher: Dispatcher) -> bool:
        """Bring claims, ledger and queue up to date, in parts. Return True if a part is left before due entries."""
        submitter, schedule = self.submitter, self.schedule
        taken_back = self._claims.record_stale(dispatcher, schedule.queue, term, awaits_read=schedule.awaits_read)
        if taken_back:
            schedule.read_again(taken_back)
        schedule.release_after_resend()
        if schedule.first:
            submitter.submit(term, dispatcher, schedule.first.popleft())
            return True
        if not schedule.after_resend:
            self._recovery.finish(dispatcher.ledger, term)
        schedule.load_more(term, dispatcher)
        if schedule.first:
            # One part of a large schedule. Due entries are dispatched between two parts.
            submitter.submit(term, dispatcher, schedule.first.popleft())
        return bool(schedule.must_read or schedule.first)

    def _idle(self) -> float:
        """Return the seconds until an entry is due."""
        due_at = self.schedule.queue.next_due()
        return max((due_at - self._parts.time.now()).total_seconds(), 0.0) if due_at else float("inf")

    def isolate_pending(self, error: StoreError) -> bool:
        """Split a pending batch that fails although Redis answers. Return True if the batch is at fault."""
        return self.dispatcher is not None and self.submitter.isolate_pending(error, self.dispatcher)

    def _chosen(self, term: Term) -> Dispatcher:
        if self.dispatcher is None:
            self.dispatcher = self._parts.choose_dispatcher(term)
        return self.dispatcher

    def _load(self, term: Term) -> None:
        self.submitter.discard()
        self._builder.prepared.clear()
        self.dispatcher = dispatcher = self._parts.choose_dispatcher(term)
        dispatcher.take_back(term)  # guard: claim-unsent-first
        self.schedule.load(term, dispatcher)

    def _paused(self, term: Term) -> bool:
        """True if nothing of the schedule may be sent now."""
        pause = self._parts.pause
        # An entry's pause that an earlier term has read may have ended, and others may have begun.
        return pause.in_force or pause.must_be_read(term)  # guard: pause-read-first

    def _submit_due(self, term: Term, dispatcher: Dispatcher) -> bool:
        """Submit due entries. Return False if there are none."""
        until = self._parts.clock.elapsed() + _BURST_TURN

        def build_next() -> Sequence[EntryOperation]:
            return self._build(term, dispatcher) if self._may_continue(term, until) else ()

        operations = self._build(term, dispatcher)
        if operations:
            self.submitter.submit_due(term, dispatcher, operations, build_next)
        return bool(operations)

    def _may_continue(self, term: Term, until: float) -> bool:
        """True if a prepared batch may follow the one under way, because nothing else must be done before it."""
        return (
            bool(self._builder.prepared)
            and self._parts.clock.elapsed() < until
            and self.submitter.broker_failure is None
            and not (self.schedule.first or self.schedule.must_read or self._paused(term))
        )

    def _build(self, term: Term, dispatcher: Dispatcher) -> Sequence[EntryOperation]:
        """Return a batch of operations for due entries."""
        queue, time = self.schedule.queue, self._parts.time
        writer = LedgerWriter(term, time.now())
        batch = self._builder.build(writer, queue, dispatcher, self._parts.pace.begin())
        if batch.out_of_time:
            queue.put_after_newer(writer.now, time.now())
        if batch.error is not None:
            self.submitter.broker_failure = (batch.error, len(batch.waiting))
        return batch.operations
