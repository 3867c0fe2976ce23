"""Messages that are sent on request: the sender for manual runs and backfills, and the handler of manual runs."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import datetime

from ha_beat import events
from ha_beat.budget import LONGEST_BUDGET, Budget, Pace
from ha_beat.dispatch import Answer, Dispatcher, MessageFailed, Operation, PreparedMessage, judged_build_errors
from ha_beat.dispatch.messages.build import Declined
from ha_beat.errors import StoreUnavailable
from ha_beat.headers import header_of, with_header
from ha_beat.leader.batches.batch_builder import BATCH_CHARACTERS
from ha_beat.leader.batches.slow_arguments import SlowArguments
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.entry import EntryState
from ha_beat.leader.requests.outcome import NotReady, RequestOutcome, RequestRefused, find_entry, names, request_record
from ha_beat.reasons import AnswerKind, MessageKind, ReplyCode, Verdict
from ha_beat.schedule.occurrence import Occurrence
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import Request, Requests

#: Outcomes of an operation whose message was enqueued.
SENT = frozenset({AnswerKind.DONE, AnswerKind.MINE, AnswerKind.PARTIAL})


@dataclass(frozen=True, slots=True)
class Order:
    """Order to send messages of one entry under a term, for a request."""

    term: Term
    request: Request
    state: EntryState
    kind: MessageKind


@dataclass(frozen=True, slots=True)
class Step:
    """One message of an order, for the instant ``at``. Steps are numbered from 1."""

    number: int
    at: datetime
    task_id: str


class RequestedMessages:
    """Sender of the messages of requests. They do not move the entry's position.

    The dispatch script refuses a step that was begun before, and any step of a request that no longer waits.
    """

    def __init__(
        self,
        enqueuer: Enqueuer,
        requests: Requests,
        cluster: str,
        emit: Callable[[events.Event], None],
        arguments: SlowArguments,
    ) -> None:
        self._enqueuer = enqueuer
        self._arguments = arguments
        self._requests = requests
        self._cluster = cluster
        self._emit = emit
        #: The last step that earlier leaders began, by the id of each request that this leader has begun.
        self._begun_before: dict[str, int] = {}
        #: Messages without an answer, by request and step. If one were built again, a task with a lock would decline.
        self._built: dict[tuple[str, int], tuple[Dispatcher, PreparedMessage]] = {}

    def now(self) -> datetime:
        """Return the scheduling time, in UTC."""
        return self._enqueuer.now()

    def entry(self, request: Request) -> EntryState:
        """Return the entry that a request names."""
        return find_entry(self._enqueuer.due_queue, request)

    def task_id(self, state: EntryState, at: datetime) -> str:
        """Return the id of the message that the schedule sends for this instant."""
        return Occurrence(state.id, at).task_id(self._cluster)

    def begun_before(self, request: Request) -> int:
        """Return the number of the last step that an earlier leader began, or 0. It must not be sent again."""
        if request.id not in self._begun_before:
            self._begun_before[request.id] = self._requests.last_step(request.id)
        return self._begun_before[request.id]

    def forget(self, request_id: str) -> None:
        """Forget an answered request."""
        self._begun_before.pop(request_id, None)
        self._built = {key: built for key, built in self._built.items() if key[0] != request_id}

    def keep_only(self, waiting: Container[str]) -> None:
        """Forget the requests that no longer wait."""
        self._begun_before = {name: step for name, step in self._begun_before.items() if name in waiting}
        self._built = {key: built for key, built in self._built.items() if key[0] in waiting}

    def begin_term(self) -> None:
        """Forget all requests, because this replica's earlier term counts as another leader."""
        self._begun_before.clear()

    def send(self, order: Order, steps: Sequence[Step], budget: Budget) -> list[Answer]:
        """Send one message for each step.

        Returns:
            An answer for each step that the budget and the size of a batch allow, none if the first one waits for its
            arguments.

        Raises:
            FencedOff: the term is over.
            StoreError: the outcome is unknown, or nothing was sent.
        """
        dispatcher = self._enqueuer.dispatcher
        if dispatcher is None:
            raise StoreUnavailable("no dispatch path has been chosen yet", acted=False)
        operations, found = self._build(order, steps[: dispatcher.capacity], dispatcher, budget)
        if operations:
            found.update(zip(operations, dispatcher.submit(order.term, list(operations.values())), strict=True))
        answers = [found[step.number] for step in steps if step.number in found]
        request, name, task = order.request, order.state.label, order.state.entry.task
        for step, answer in zip(steps, answers, strict=False):
            self._built.pop((request.id, step.number), None)
            if answer.kind in SENT:
                self._emit(events.EnqueuedOnRequest(name, task, step.task_id, step.at, order.kind, request.by))
        return answers

    def _build(
        self, order: Order, steps: Sequence[Step], dispatcher: Dispatcher, budget: Budget
    ) -> tuple[dict[int, Operation], dict[int, Answer]]:
        """Return the operations of the first steps, and the answers to those that have none, both by number."""
        operations: dict[int, Operation] = {}
        failed: dict[int, Answer] = {}
        room = BATCH_CHARACTERS
        for step in steps:
            if (operations or failed) and (room <= 0 or budget.spent):
                break
            kept, state = self._kept(order, step, dispatcher), order.state
            wait = min(budget.left, LONGEST_BUDGET)
            if (kept is None or kept.timed) and not self._arguments.ready_within(state.entry, wait):
                if not operations and not failed and self._arguments.overdue(state.id):
                    detail = "its arguments have not been computed within a minute"
                    failed[step.number] = Answer(AnswerKind.ERROR, detail)
                break
            try:
                operation = self._operation(order, step, kept, dispatcher)
            except Declined as declined:
                failed[step.number] = Answer(AnswerKind.DECLINED, str(declined))
            except MessageFailed as error:
                failed[step.number] = Answer(AnswerKind.ERROR, error.detail)
            else:
                operations[step.number] = operation
                room -= operation.size
            budget.item_done()
        return operations, failed

    def _kept(self, order: Order, step: Step, dispatcher: Dispatcher) -> PreparedMessage | None:
        """Return the message that was built for a step, if it can be sent by the dispatcher."""
        built = self._built.get((order.request.id, step.number))
        return built[1] if built is not None and built[0] is dispatcher else None

    def _operation(self, order: Order, step: Step, kept: PreparedMessage | None, dispatcher: Dispatcher) -> Operation:
        request, state = order.request, order.state
        instant = Occurrence(state.id, step.at).instant
        header = header_of(
            self._cluster,
            state.id,
            instant,
            epoch=order.term.epoch,
            run_count=state.row.run_count if state.row else 0,
            kind=order.kind,
            request=request.id,
            busy=f"{request.id}:{step.number}" if state.entry.busy_for else "",
        )
        if kept is not None and not kept.timed:
            message = kept.restamped(header)
        else:
            try:
                with judged_build_errors(dispatcher):
                    (args, kwargs, options), _ = self._arguments.take(state.entry)
                    options = with_header(options, header, step.task_id)
                    message = dispatcher.prepare(state.entry.celery_entry, args, kwargs, options)
            except Declined:
                # The task may have found what it reserved for the message that was built before.
                if kept is None:
                    raise
                message = kept.restamped(header)
            self._built[request.id, step.number] = (dispatcher, message)
        content = {"kind": order.kind, "verdict": Verdict.ENQUEUED, **names(state), "at": instant, "id": step.task_id}
        return Operation(
            state.id,
            "",
            "",
            (request_record(order.term, request, self.now(), content),),
            message,
            request=request.id,
            step=step.number,
            task_id=step.task_id,
            busy_ms=round(state.entry.busy_for * 1000),
        )


class RunHandler:
    """Handler of ``run``: enqueue an entry's task once, now."""

    def __init__(self, messages: RequestedMessages, pace: Pace) -> None:
        self._messages = messages
        self._pace = pace

    def __call__(self, term: Term, request: Request) -> RequestOutcome:
        """Carry out the request."""
        messages, task_id = self._messages, request.task_id()
        state = messages.entry(request)
        data = {"entry": state.label, "task": state.entry.task, "task_id": task_id}
        if messages.begun_before(request):
            return RequestOutcome(ReplyCode.SENT_EARLIER, data)
        order, step = Order(term, request, state, MessageKind.MANUAL), Step(1, messages.now(), task_id)
        answers = messages.send(order, [step], self._pace.begin())
        if not answers:
            raise NotReady
        answer = answers[0]
        if answer.kind in SENT:
            return RequestOutcome(ReplyCode.SENT, data)
        match answer.kind:
            case AnswerKind.WITHDRAWN:
                code = ReplyCode.WITHDRAWN
            case AnswerKind.UNCERTAIN | AnswerKind.AGAIN:
                code = ReplyCode.UNCERTAIN
            case _:
                code = ReplyCode.NOT_SENT
        raise RequestRefused(code, **data, detail=answer.detail or answer.kind)
