"""Handler of requests to the leader, on its main loop, between two batches.

Every change that a request makes is made by a script that checks the term and that the request still waits. A request
is carried out once, by the leader of the moment, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.dispatch import FencedOff
from ha_beat.errors import StoreError
from ha_beat.leader.backfill import BackfillHandler
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.leader_report import LeaderReport
from ha_beat.leader.pause import PauseControl, PauseState
from ha_beat.leader.planner import ScheduleSource
from ha_beat.leader.request_outcome import Handler, Outcome, Refused, request_record
from ha_beat.leader.requested_messages import RequestedMessages, RunHandler
from ha_beat.reasons import ReplyCode, RequestKind, TermEnd
from ha_beat.store.journal import Journal
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import Reply, Request, Requests
from ha_beat.store.shadow import Shadow

#: Requests that send messages.
_NEED_THE_BROKER = frozenset({RequestKind.RUN, RequestKind.BACKFILL})

#: Requests that change nothing. Their answers are not logged.
_READ_ONLY = frozenset({RequestKind.NEXT, RequestKind.REPORT})

#: Seconds between two attempts while Redis or the schedule is unavailable.
_RETRY = 0.25


class LeaderControl(Protocol):
    """Election methods that request handlers use."""

    def step_down(self, reason: TermEnd, *, detail: str = "", preferred: str = "") -> None: ...

    def progress(self) -> None: ...


class RequestHandler:
    """Dispatcher of requests to one handler per kind. Used by the main loop only."""

    def __init__(
        self,
        requests: Requests,
        handlers: Mapping[RequestKind, Handler],
        enqueuer: Enqueuer,
        pause: PauseControl,
        messages: RequestedMessages,
        clock: Clock,
        progress: Callable[[], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        """``progress`` is called after each request."""
        self._requests = requests
        self._handlers = handlers
        self._enqueuer = enqueuer
        self._pause = pause
        self._messages = messages
        self._clock = clock
        self._progress = progress
        self._emit = emit
        self._term = ""
        self._retry_at = 0.0
        #: Outcomes of requests that sent messages, until their answer is written. Carrying such a request out again
        #: would not yield the same answer.
        self._unanswered: dict[str, Outcome] = {}
        #: True if requests may be pending.
        self._requests_pending = False

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
                self._serve(term)
                self._requests_pending = False
        except StoreError:
            # The enqueuer uses the same Redis and reports the outage.
            self._retry_at = self._clock.elapsed() + _RETRY
        return _RETRY if self._requests_pending else float("inf")

    def _begin(self, term: Term) -> None:
        new_term = self._term != term.nonce
        self._pause.refresh(term, new_term=new_term)
        if new_term:
            self._messages.begin_term()
            self._unanswered.clear()
            self._term = term.nonce

    def _serve(self, term: Term) -> None:
        waiting, server_ms = self._requests.waiting()
        broker_error: StoreError | None = None
        for request in waiting:
            needs_broker = request.kind in _NEED_THE_BROKER
            if broker_error is not None and needs_broker:
                continue
            if request.deadline_ms and request.deadline_ms < server_ms:
                self._requests.withdraw(request.id)
                self._unanswered.pop(request.id, None)
                continue
            try:
                self._handle(term, request)
            except StoreError as exc:
                # If only the broker is unreachable, the other requests need not wait for it.
                if broker_error is not None or not needs_broker:
                    raise
                broker_error = exc  # guard: request-broker-away
            self._progress()
        if broker_error is not None:
            raise broker_error

    def _handle(self, term: Term, request: Request) -> None:
        try:
            outcome = self._unanswered.get(request.id)  # guard: reply-repeated
            self._answer(term, request, outcome or self._outcome(term, request))
        except (StoreError, FencedOff):
            raise
        except Exception as exc:
            self._answer(term, request, Outcome(ReplyCode.FAILED, {"detail": f"{type(exc).__name__}: {exc}"}))

    def _outcome(self, term: Term, request: Request) -> Outcome:
        handler = self._handlers.get(request.kind)
        if handler is None:
            return Outcome(ReplyCode.UNKNOWN_REQUEST)
        try:
            return handler(term, request)
        except Refused as refused:
            return refused.outcome

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
    clock: Clock,
    emit: Callable[[events.Event], None],
) -> tuple[RequestHandler, LeaderReport]:
    """Return the handler of all kinds of requests, and the report that must follow the replica's events."""
    messages = RequestedMessages(enqueuer, source, requests, cluster, emit)
    control = PauseControl(pause, requests, shadow, enqueuer.now, enqueuer.reload, emit)
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
        RequestKind.RUN: RunHandler(messages),
        RequestKind.BACKFILL: BackfillHandler(messages, journal, leader.progress),
        RequestKind.NEXT: report.next,
        RequestKind.REPORT: report.report,
    }
    return RequestHandler(requests, handlers, enqueuer, control, messages, clock, leader.progress, emit), report
