"""Handler of requests to the leader, on its main loop, between two batches.

Each change for a request is made by a script that checks the term, and that the request still waits. So a request is
carried out once, by the present leader, or not at all.

Requests have a time budget per turn, and long ones work in steps. Each leader counts its attempt before the work
begins, and a request during which several terms ended is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ha_beat import events
from ha_beat.budget import Budget, Pace
from ha_beat.dispatch import FencedOff
from ha_beat.election.leader_handle import LeaderHandle
from ha_beat.errors import StoreError
from ha_beat.exception_text import exception_line
from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.pause import PauseState
from ha_beat.leader.planner import ScheduleSource
from ha_beat.leader.requests.backfill import BackfillHandler
from ha_beat.leader.requests.outcome import Handler, NotReady, RequestOutcome, RequestRefused, Steps, request_record
from ha_beat.leader.requests.pause_control import PauseControl
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


@dataclass(slots=True)
class _BegunRequest:
    """State of a request that this term has begun."""

    #: True if this term has counted its attempt at the request.
    counted: bool = False
    #: Work that goes on in the next turn. At most one request has any, because each reads what others did.
    work: Steps | None = None
    #: Outcome of a request that sent messages, until its answer is written. Carrying such a request out again would not
    #: yield the same answer.
    unanswered: RequestOutcome | None = None


class RequestHandler:
    """Dispatcher of requests to one handler per kind. Used by the main loop only."""

    def __init__(
        self,
        requests: Requests,
        handlers: Mapping[RequestKind, Handler],
        enqueuer: Enqueuer,
        pauses: PauseControl,
        messages: RequestedMessages,
        pace: Pace,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._requests = requests
        self._handlers = handlers
        self._enqueuer = enqueuer
        self._pauses = pauses
        self._messages = messages
        self._pace = pace
        self._emit = emit
        #: Nonce of the last term.
        self._nonce = ""
        self._retry_at = 0.0
        #: Waiting requests that this term has begun, by id.
        self._begun: dict[str, _BegunRequest] = {}
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
        elapsed = self._pace.clock.elapsed
        self._requests_pending = self._requests_pending or requests_pending
        if elapsed() < self._retry_at:
            return _RETRY
        try:
            self._begin(term)
            if self._requests_pending and self._enqueuer.serves(term):
                self._requests_pending = not self._serve(term)
                if self._waits:
                    self._retry_at = elapsed() + _RETRY
                elif self._requests_pending:
                    return 0.0
        except StoreError:
            # The enqueuer uses the same Redis and reports the outage.
            self._retry_at = elapsed() + _RETRY
            return _RETRY
        return _RETRY if self._requests_pending else float("inf")

    def _begin(self, term: Term) -> None:
        new_term = self._nonce != term.nonce
        self._pauses.refresh(term, new_term=new_term)
        if new_term:
            self._messages.begin_term()
            self._begun.clear()
            self._nonce = term.nonce

    def _serve(self, term: Term) -> bool:
        """Serve the waiting requests until the budget is spent. Return True if none is left."""
        complete, budget, backfilled, self._waits = True, self._pace.begin(), False, False
        broker_error: StoreError | None = None
        for request in self._waiting():
            needs_broker, is_backfill = request.kind in _NEED_THE_BROKER, request.kind is RequestKind.BACKFILL
            if broker_error is not None and needs_broker:
                continue
            if backfilled or (budget.spent and not is_backfill):
                complete = False
                continue
            if is_backfill:
                budget, backfilled = self._pace.begin(), True
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

    def _waiting(self) -> list[Request]:
        """Return the requests to serve, in order. Withdraw those past their deadline, and forget those that are gone.

        Backfills come last, so that a long one does not hold up the others. One of them works per turn.
        """
        found, server_ms = self._requests.waiting()
        waiting = []
        for request in found:
            if request.deadline_ms and request.deadline_ms < server_ms:
                self._requests.withdraw(request.id)
            else:
                waiting.append(request)
        ids = {request.id for request in waiting}
        self._messages.keep_only(ids)
        self._begun = {name: begun for name, begun in self._begun.items() if name in ids}
        working = {name for name, begun in self._begun.items() if begun.work is not None}
        return sorted(waiting, key=lambda request: (request.kind is RequestKind.BACKFILL, request.id not in working))

    def _handle(self, term: Term, request: Request, budget: Budget) -> bool:
        """Carry out a request and answer it. Return False if it goes on in the next turn."""
        begun = self._begun.setdefault(request.id, _BegunRequest())
        try:
            outcome = begun.unanswered  # guard: reply-repeated
            outcome = outcome or self._attempt(term, request, begun, budget)
            if outcome is None:
                return False
            self._answer(term, request, begun, outcome)
        except (StoreError, FencedOff):
            raise
        except Exception as exc:
            self._answer(term, request, begun, RequestOutcome(ReplyCode.FAILED, {"detail": exception_line(exc)}))
        return True

    def _attempt(self, term: Term, request: Request, begun: _BegunRequest, budget: Budget) -> RequestOutcome | None:
        """Carry out a request, and count the attempt first. Return ``None`` if it goes on in the next turn."""
        if not begun.counted:
            if request.attempts >= MOST_ATTEMPTS:
                return RequestOutcome(ReplyCode.ENDED_TERMS, {"terms": request.attempts})
            counted = self._requests.count_attempt(term, request.id)
            if isinstance(counted, TermEnd):
                raise FencedOff(counted)
            begun.counted = True
        try:
            return self._outcome(term, request, begun, budget)
        except NotReady:
            self._waits = True
            return None
        except StoreError:
            # The term goes on: the request is not at fault for an unreachable Redis or broker.
            begun.counted = False
            with suppress(StoreError):
                self._requests.count_attempt(term, request.id, -1)
            raise

    def _outcome(self, term: Term, request: Request, begun: _BegunRequest, budget: Budget) -> RequestOutcome | None:
        handler = self._handlers.get(request.kind)
        if handler is None:
            return RequestOutcome(ReplyCode.UNKNOWN_REQUEST)
        try:
            if begun.work is None:
                work = handler(term, request)
                if isinstance(work, RequestOutcome):
                    return work
                begun.work = work
            return self._continue_work(begun.work, budget)
        except RequestRefused as refused:
            begun.work = None
            return refused.outcome
        except BaseException:
            begun.work = None
            raise

    def _continue_work(self, work: Steps, budget: Budget) -> RequestOutcome | None:
        """Take steps until the work is done or the budget spent. Return ``None`` if it goes on in the next turn."""
        try:
            while True:
                self._waits = next(work)
                budget.item_done()
                if budget.spent or self._waits:
                    return None
        except StopIteration as finished:
            outcome: RequestOutcome = finished.value
            return outcome

    def _answer(self, term: Term, request: Request, begun: _BegunRequest, outcome: RequestOutcome) -> None:
        if request.kind in _NEED_THE_BROKER:
            begun.unanswered = outcome
        reply = Reply(outcome.code, outcome.data, term.holder, term.epoch)
        record = ""
        if outcome.record is not None:
            record = request_record(term, request, self._enqueuer.now(), {"kind": "control", **outcome.record})
        answered = self._requests.answer(term, request, reply, record=record, change=outcome.change)
        if isinstance(answered, TermEnd):
            raise FencedOff(answered)
        self._messages.forget(request.id)
        self._begun.pop(request.id, None)
        if not answered:
            # The request was withdrawn after it was read.
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
    leader: LeaderHandle,
    shadow: Shadow,
    cluster: str,
    pace: Pace,
    emit: Callable[[events.Event], None],
) -> tuple[RequestHandler, LeaderReport]:
    """Return the handler of all kinds of requests, and the report that must follow the replica's events."""
    # A leader waits for the arguments of a message for one budget. Then a thread computes them.
    arguments = SlowArguments(source.arguments, pace.clock, pace.seconds)
    messages = RequestedMessages(enqueuer, requests, cluster, emit, arguments)
    pauses = PauseControl(pause, requests, shadow, enqueuer, emit)
    report = LeaderReport(enqueuer, pause)

    def step_down(term: Term, request: Request) -> RequestOutcome:
        preferred = str(request.args.get("to") or "")
        if preferred == term.holder:
            raise RequestRefused(ReplyCode.ALREADY_LEADER, replica=preferred)
        # The answer is written first, because this replica cannot write it after the end of its term.
        return RequestOutcome(
            ReplyCode.STEPPING_DOWN,
            {"replica": term.holder, "epoch": term.epoch},
            then=lambda: leader.step_down(TermEnd.STEP_DOWN, detail=request.by, preferred=preferred),
        )

    handlers: dict[RequestKind, Handler] = {
        RequestKind.STEP_DOWN: step_down,
        RequestKind.PAUSE: pauses.pause,
        RequestKind.RESUME: pauses.resume,
        RequestKind.PAUSE_ENTRY: pauses.pause_entry,
        RequestKind.RESUME_ENTRY: pauses.resume_entry,
        RequestKind.RUN: RunHandler(messages, pace),
        RequestKind.BACKFILL: BackfillHandler(messages, journal, pace),
        RequestKind.NEXT: report.next,
        RequestKind.REPORT: report.report,
    }
    return RequestHandler(requests, handlers, enqueuer, pauses, messages, pace, emit), report
