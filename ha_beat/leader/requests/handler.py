"""Handler of requests to the leader, on its main loop, between two batches.

Every change that a request makes is made by a script that checks the term and that the request still waits. A request
is carried out once, by the leader of the moment, or not at all.

Requests have a time budget per turn, and long ones work in steps. A request in which several terms ended is rejected:
each leader counts its attempt before the work begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from ha_beat import events
from ha_beat.budget import Budget, Pace
from ha_beat.dispatch import FencedOff
from ha_beat.errors import StoreError
from ha_beat.exception_text import exception_line
from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.pause import PauseState
from ha_beat.leader.planner import ScheduleSource
from ha_beat.leader.requests.backfill import BackfillHandler
from ha_beat.leader.requests.outcome import Handler, NotReady, Outcome, Refused, Steps, request_record
from ha_beat.leader.requests.pauses import EntryPauseControl, PauseControl
from ha_beat.leader.requests.report import LeaderReport
from ha_beat.leader.requests.requested_messages import RequestedMessages, RunHandler
from ha_beat.reasons import ReplyCode, RequestKind, TermEnd
from ha_beat.store.journal import Journal
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import Reply, Request, Requests
from ha_beat.store.shadow import Shadow

#: Requests that send messages.
_NEED_THE_BROKER = frozenset({RequestKind.RUN, RequestKind.BACKFILL})

#: Requests that change nothing. Their answers are not logged.
_READ_ONLY = frozenset({RequestKind.NEXT, RequestKind.REPORT})

#: Terms that may end during the work on a request before it is rejected.
MOST_ATTEMPTS = 3

#: Seconds between two attempts while Redis or the schedule is unavailable.
_RETRY = 0.25


class LeaderControl(Protocol):
    """Election methods that request handlers use."""

    def step_down(self, reason: TermEnd, *, detail: str = "", preferred: str = "") -> None: ...


class RequestHandler:
    """Dispatcher of requests to one handler per kind. Used by the main loop only."""

    def __init__(
        self,
        requests: Requests,
        handlers: Mapping[RequestKind, Handler],
        enqueuer: Enqueuer,
        pause: PauseControl,
        messages: RequestedMessages,
        pace: Pace,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._requests = requests
        self._handlers = handlers
        self._enqueuer = enqueuer
        self._pause = pause
        self._messages = messages
        self._clock = pace.clock
        self._pace = pace
        self._emit = emit
        self._term = ""
        self._retry_at = 0.0
        #: Outcomes of requests that sent messages, until their answer is written. Carrying such a request out again
        #: would not yield the same answer.
        self._unanswered: dict[str, Outcome] = {}
        #: Requests whose attempt this term has counted.
        self._begun: set[str] = set()
        #: The request that is carried out in steps, and its work; at most one, because each reads what others did.
        self._working_on = ""
        self._work: Steps | None = None
        #: True if requests may be pending.
        self._requests_pending = False
        #: True if nothing can be done for the waiting requests until the arguments of a message are computed.
        self._waits = False

    def attend(self, term: Term, *, requests_pending: bool) -> float:
        """Refresh the pause, and serve the waiting requests if there may be any. Costs nothing otherwise.

        Returns:
            Seconds after which this must be called again at the latest.

        Raises:
            FencedOff: the term is over.
        """
        self._requests_pending = self._requests_pending or requests_pending
        if self._clock.elapsed() < self._retry_at:
            return _RETRY
        try:
            self._begin(term)
            if self._requests_pending and self._enqueuer.serves(term):
                self._requests_pending = not self._serve(term)
                if self._requests_pending and not self._waits:
                    return 0.0
                if self._waits:
                    self._retry_at = self._clock.elapsed() + _RETRY
        except StoreError:
            # The enqueuer uses the same Redis and reports the outage.
            self._retry_at = self._clock.elapsed() + _RETRY
            return _RETRY
        return _RETRY if self._requests_pending else float("inf")

    def _begin(self, term: Term) -> None:
        new_term = self._term != term.nonce
        self._pause.refresh(term, new_term=new_term)
        if new_term:
            self._messages.begin_term()
            self._unanswered.clear()
            self._begun.clear()
            self._stop_work()
            self._term = term.nonce

    def _forget_all_but(self, waiting: set[str]) -> None:
        """Forget the requests that were withdrawn or have expired."""
        self._messages.keep(waiting)
        self._unanswered = {name: outcome for name, outcome in self._unanswered.items() if name in waiting}
        self._begun &= waiting
        if self._working_on not in waiting:
            self._stop_work()

    def _serve(self, term: Term) -> bool:
        """Serve the waiting requests until the budget is spent. Return True if none is left."""
        waiting, server_ms = self._requests.waiting()
        self._forget_all_but({request.id for request in waiting})
        # Backfills come last, so that a long one does not hold up the others. One of them works per turn.
        waiting.sort(key=lambda request: (request.kind is RequestKind.BACKFILL, request.id != self._working_on))
        complete, budget, worked, self._waits = True, self._pace.begin(), False, False
        broker_error: StoreError | None = None
        for request in waiting:
            needs_broker = request.kind in _NEED_THE_BROKER
            if broker_error is not None and needs_broker:
                continue
            if request.deadline_ms and request.deadline_ms < server_ms:
                self._requests.withdraw(request.id)
                self._unanswered.pop(request.id, None)
                continue
            if worked or (budget.spent and request.kind is not RequestKind.BACKFILL):
                complete = False
                continue
            if request.kind is RequestKind.BACKFILL:
                budget, worked = self._pace.begin(), True
            try:
                complete = self._handle(term, request, budget) and complete
            except StoreError as exc:
                # If only the broker is unreachable, the other requests need not wait for it.
                if broker_error is not None or not needs_broker:
                    raise
                broker_error = exc  # guard: request-broker-away
            budget.item_done()
        if broker_error is not None:
            raise broker_error
        return complete

    def _handle(self, term: Term, request: Request, budget: Budget) -> bool:
        """Carry out a request and answer it. Return False if it goes on in the next turn."""
        try:
            outcome = self._unanswered.get(request.id)  # guard: reply-repeated
            outcome = outcome or self._attempt(term, request, budget)
            if outcome is None:
                return False
            self._answer(term, request, outcome)
        except (StoreError, FencedOff):
            raise
        except Exception as exc:
            self._answer(term, request, Outcome(ReplyCode.FAILED, {"detail": exception_line(exc)}))
        return True

    def _attempt(self, term: Term, request: Request, budget: Budget) -> Outcome | None:
        """Carry out a request, and count the attempt first. Return ``None`` if it goes on in the next turn."""
        if request.id not in self._begun:
            if request.attempts >= MOST_ATTEMPTS:
                return Outcome(ReplyCode.ENDED_TERMS, {"terms": request.attempts})
            counted = self._requests.count_attempt(term, request.id)
            if isinstance(counted, TermEnd):
                raise FencedOff(counted)
            self._begun.add(request.id)
        try:
            return self._outcome(term, request, budget)
        except NotReady:
            self._waits = True
            return None
        except StoreError:
            # The term goes on: neither Redis nor the broker being away is the request's fault.
            self._begun.discard(request.id)
            with suppress(StoreError):
                self._requests.count_attempt(term, request.id, -1)
            raise

    def _outcome(self, term: Term, request: Request, budget: Budget) -> Outcome | None:
        handler = self._handlers.get(request.kind)
        if handler is None:
            return Outcome(ReplyCode.UNKNOWN_REQUEST)
        try:
            if request.id != self._working_on:
                begun = handler(term, request)
                if isinstance(begun, Outcome):
                    return begun
                self._working_on, self._work = request.id, begun
            return self._continue_work(budget)
        except Refused as refused:
            return refused.outcome

    def _continue_work(self, budget: Budget) -> Outcome | None:
        """Take steps until the work is done or the budget spent. Return ``None`` if it goes on in the next turn."""
        work, outcome = self._work, None
        try:
            while work is not None:
                self._waits = next(work)
                budget.item_done()
                if budget.spent or self._waits:
                    return None
        except StopIteration as finished:
            outcome = finished.value
        except BaseException:
            self._stop_work()
            raise
        self._stop_work()
        return outcome

    def _stop_work(self) -> None:
        self._working_on, self._work = "", None

    def _answer(self, term: Term, request: Request, outcome: Outcome) -> None:
        if request.kind in _NEED_THE_BROKER:
            self._unanswered[request.id] = outcome
        reply = Reply(outcome.code, outcome.data, term.holder, term.epoch)
        record = ""
        if outcome.record is not None:
            record = request_record(term, request, self._enqueuer.now(), {"kind": "control", **outcome.record})
        answered = self._requests.answer(term, request, reply, record=record, change=outcome.change)
        if isinstance(answered, TermEnd):
            raise FencedOff(answered)
        self._messages.forget(request.id)
        self._begun.discard(request.id)
        self._unanswered.pop(request.id, None)
        if not answered:
            # Withdrawn since it was read.
            return
        if request.kind not in _READ_ONLY:
            self._emit(events.RequestAnswered(request.kind, request.by, outcome.code, outcome.data))
        if outcome.then is not None:
            outcome.then()


def build_request_handler(
    *,
    requests: Requests,
    journal: Journal,
    enqueuer: Enqueuer,
    pause: PauseState,
    source: ScheduleSource,
    leader: LeaderControl,
    shadow: Shadow,
    cluster: str,
    pace: Pace,
    emit: Callable[[events.Event], None],
) -> tuple[RequestHandler, LeaderReport]:
    """Return the handler of all kinds of requests, and the report that must follow the replica's events."""
    # A leader waits for the arguments of a message for one budget. Then a thread computes them.
    arguments = SlowArguments(source.arguments, pace.clock, pace.seconds)
    messages = RequestedMessages(enqueuer, requests, cluster, emit, arguments)
    control = PauseControl(pause, requests, shadow, enqueuer.now, enqueuer.reload, emit)
    entries = EntryPauseControl(pause, enqueuer, shadow)
    report = LeaderReport(enqueuer, pause)

    def step_down(term: Term, request: Request) -> Outcome:
        preferred = str(request.args.get("to") or "")
        if preferred == term.holder:
            raise Refused(ReplyCode.ALREADY_LEADER, replica=preferred)
        # The answer is written first: afterwards this replica no longer leads.
        return Outcome(
            ReplyCode.STEPPING_DOWN,
            {"replica": term.holder, "epoch": term.epoch},
            then=lambda: leader.step_down(TermEnd.STEP_DOWN, detail=request.by, preferred=preferred),
        )

    handlers: dict[RequestKind, Handler] = {
        RequestKind.STEP_DOWN: step_down,
        RequestKind.PAUSE: control.pause,
        RequestKind.RESUME: control.resume,
        RequestKind.PAUSE_ENTRY: entries.pause,
        RequestKind.RESUME_ENTRY: entries.resume,
        RequestKind.RUN: RunHandler(messages, pace),
        RequestKind.BACKFILL: BackfillHandler(messages, journal, pace),
        RequestKind.NEXT: report.next,
        RequestKind.REPORT: report.report,
    }
    return RequestHandler(requests, handlers, enqueuer, control, messages, pace, emit), report
