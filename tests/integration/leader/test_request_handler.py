"""The request handler on a real Redis, with an enqueuer of the test's own."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from ha_beat import events
from ha_beat.budget import Pace
from ha_beat.dispatch import Answer
from ha_beat.dispatch.batch import BatchScript
from ha_beat.dispatch.message import Declined
from ha_beat.errors import StoreUnavailable
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.pause import PauseState
from ha_beat.leader.request_handler import build_request_handler
from ha_beat.reasons import AnswerKind, ReplyCode, RequestKind
from ha_beat.store import entry_pauses
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import MOST_WAITING, Pause, Reply, Request, Requests, TooManyRequests
from ha_beat.store.scripts import text
from ha_beat.store.shadow import Shadow
from tests.support.clocks import AdvancedClock
from tests.support.dispatchers import TimedPush, push
from tests.support.entries import scheduled, state_of
from tests.support.events import EventLog
from tests.support.leases import begin_term
from tests.support.servers import RedisServer, wait_for

KEYS = Keys("requests")


class UnreachableBroker:
    """Dispatcher whose broker is unreachable."""

    capacity = 1000

    tries = 0

    def prepare(self, *_: object) -> Any:
        self.tries += 1
        raise StoreUnavailable("the broker is unreachable", acted=False)

    def broker_error(self, _: object) -> None: ...


class Stub:
    """Enqueuer, elector and schedule source of the handler."""

    def __init__(self) -> None:
        self.due_queue = DueQueue()
        self.step_downs = 0
        self.compute: Callable[[], object] = lambda: None
        self.dispatcher: Any = UnreachableBroker()
        state = state_of(scheduled("e", every=None, last_run=self.now()))
        self.due_queue.put(state, self.now() + timedelta(hours=1))

    def serves(self, _: object) -> bool:
        return True

    def step_down(self, *_: object, **__: object) -> None:
        self.step_downs += 1

    def reload(self) -> None: ...

    def arguments(self, _: object) -> Any:
        self.compute()
        return [], {}, {}

    def now(self) -> datetime:
        return datetime.now(UTC)


class Leader:
    """A leader's request handler, and the queue that it serves."""

    def __init__(self, server: RedisServer, shadow: Shadow | None = None) -> None:
        self.client: Any = redis.Redis.from_url(server.url)
        self.requests = Requests(lambda: self.client, KEYS, 1000)
        self.stub: Any = Stub()
        self.clock, self.pause, self.events = AdvancedClock(), PauseState(), EventLog()
        self.request_ids = (f"{number:032}" for number in itertools.count())
        self.handler, _ = build_request_handler(
            requests=self.requests,
            journal=Journal(lambda: self.client, KEYS),
            enqueuer=self.stub,
            pause=self.pause,
            source=self.stub,
            leader=self.stub,
            shadow=shadow or Shadow(),
            cluster="requests",
            pace=Pace(self.clock, 0.5),
            emit=self.events.append,
        )
        self.lead()

    def lead(self, nonce: str = "nonce") -> None:
        self.term: Term = begin_term(self.client, KEYS, nonce=nonce)

    def post(self, kind: RequestKind, **args: Any) -> Request:
        # Requests of one millisecond are served in the order of their ids.
        request = Request(kind, args, by="tester", id=next(self.request_ids))
        self.requests.post(request, lifetime=60.0)
        return request

    def attend(self, *, requests_pending: bool = True) -> float:
        self.clock.ahead += 1.0
        return self.handler.attend(self.term, requests_pending=requests_pending)

    def reply_to(self, request: Request) -> Reply:
        return self.requests.answer_to(request.id)

    def carry_out(self, kind: RequestKind, **args: Any) -> Reply:
        request = self.post(kind, **args)
        self.attend()
        return self.reply_to(request)

    def stored_pause(self) -> str | None:
        found = self.client.hget(KEYS.ledger, Pause.FIELD)
        return None if found is None else text(found)


@pytest.fixture
def leader(shared_redis: RedisServer) -> Leader:
    return Leader(shared_redis)


def lose_the_answer(leader: Leader, monkeypatch: pytest.MonkeyPatch, *, written: bool) -> None:
    """Fail the next answer, after it was written or before."""
    answer = leader.requests.answer

    def lost(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        if written:
            answer(*args, **kwargs)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(leader.requests, "answer", lost)


def test_unreachable_broker_holds_up_only_requests_that_need_it(leader: Leader):
    """The broker is tried once per round, and the runs stay in the queue."""
    runs = [leader.post(RequestKind.RUN, entry="e") for _ in range(5)]
    pause = leader.post(RequestKind.PAUSE)
    assert leader.attend() > 0
    assert leader.reply_to(pause).code is ReplyCode.PAUSED
    assert leader.pause.in_force
    assert leader.stub.dispatcher.tries == 1
    assert {request.id for request in leader.requests.waiting()[0]} == {request.id for request in runs}
    assert leader.attend() < 1.0
    assert leader.stub.dispatcher.tries == 2


@pytest.mark.parametrize(
    ("answer", "code"), [(AnswerKind.DONE, ReplyCode.SENT), (AnswerKind.UNCERTAIN, ReplyCode.UNCERTAIN)]
)
def test_lost_answer_is_repeated_unchanged(answer, code, leader: Leader, monkeypatch):
    """The broker is unreachable by then: trying again would answer that nothing was sent."""
    submitted: list[object] = []

    def submit(*_: object) -> list[Answer]:
        submitted.append(None)
        return [Answer(answer if len(submitted) == 1 else AnswerKind.UNSENT)]

    leader.stub.dispatcher.prepare = lambda *_: push()
    leader.stub.dispatcher.submit = submit
    run = leader.post(RequestKind.RUN, entry="e")
    lose_the_answer(leader, monkeypatch, written=False)
    leader.attend()
    assert leader.requests.answer_to(run.id) is None
    leader.attend()
    assert leader.reply_to(run).code is code
    assert len(submitted) == 1


def test_round_ends_at_the_first_request_that_redis_fails(leader: Leader, monkeypatch):
    """Each further attempt would wait for the command timeout on the main loop."""
    for kind in (RequestKind.RUN, RequestKind.RUN, RequestKind.PAUSE, RequestKind.REPORT, RequestKind.NEXT):
        leader.post(kind, entry="e")
    tried: list[RequestKind] = []

    def answer(_: Term, request: Request, *__: Any, **___: Any) -> Any:
        tried.append(request.kind)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(leader.requests, "answer", answer)
    leader.attend()
    assert len(tried) == 1


@pytest.mark.parametrize("kind", [RequestKind.PAUSE, RequestKind.STEP_DOWN])
def test_request_that_is_withdrawn_before_its_answer_changes_nothing(kind, leader: Leader, monkeypatch):
    """The caller knows that it is not carried out."""
    request = leader.post(kind)
    waiting = leader.requests.waiting()
    leader.requests.withdraw(request.id)
    monkeypatch.setattr(leader.requests, "waiting", lambda: waiting)
    leader.attend()
    assert leader.stub.step_downs == 0
    assert not leader.pause.in_force
    assert leader.stored_pause() is None
    assert not leader.events.of(events.RequestAnswered)


def test_memory_of_requests_that_no_longer_wait_is_dropped(leader: Leader):
    """Each is begun, cannot be sent, and is then withdrawn by its caller or expires."""
    for number in range(50):
        request = Request(RequestKind.RUN, {"entry": "e"}, by="tester")
        leader.requests.post(request, lifetime=60.0 if number % 2 else 0.001)
        leader.attend()
        if number % 2:
            leader.requests.withdraw(request.id)
    time.sleep(0.01)  # the last one expires by the clock of Redis
    for _ in range(2):
        leader.clock.ahead += 10
        leader.attend()
    assert leader.handler._messages._begun_before == leader.handler._unanswered == {}
    assert leader.handler._begun == set()
    assert leader.client.hlen(KEYS.requests) == 0


def test_progress_of_lost_requests_is_dropped(leader: Leader):
    """Their key was deleted, or evicted."""
    for number in range(50):
        leader.post(RequestKind.REPORT)
        leader.client.hset(KEYS.progress, f"begun {number}", 1)
        leader.client.delete(KEYS.requests)
    waits = leader.post(RequestKind.REPORT)
    leader.client.hset(KEYS.progress, waits.id, 1)
    leader.requests.waiting()
    assert leader.client.hkeys(KEYS.progress) == [waits.id.encode()]


def test_expired_requests_make_room_without_a_leader(leader: Leader):
    """The progress of an expired request goes with it."""
    for _ in range(MOST_WAITING - 1):
        leader.requests.post(Request(RequestKind.REPORT, {}, by="tester"), lifetime=0.001)
    begun = Request(RequestKind.RUN, {}, by="tester")
    leader.requests.post(begun, lifetime=0.001)
    leader.client.hset(KEYS.progress, begun.id, 1)
    time.sleep(0.01)
    for _ in range(MOST_WAITING):
        leader.post(RequestKind.REPORT)
    assert leader.client.hlen(KEYS.requests) == MOST_WAITING
    assert not leader.client.hexists(KEYS.progress, begun.id)
    with pytest.raises(TooManyRequests):
        leader.post(RequestKind.REPORT)


def test_request_whose_id_is_not_text_is_removed(leader: Leader):
    """It cannot be answered, and would wait forever."""
    leader.client.hset(KEYS.requests, b"\xff\xfe", b"1 2 {}")
    good = leader.post(RequestKind.REPORT)
    assert [request.id for request in leader.requests.waiting()[0]] == [good.id]
    assert leader.client.hlen(KEYS.requests) == 1
    leader.attend()
    assert leader.client.hlen(KEYS.requests) == 0


@pytest.mark.parametrize("body", ['{"kind": "of a newer version", "args": {}, "by": "me"}', "{"])
def test_request_of_unknown_kind_is_answered(body, leader: Leader):
    leader.client.hset(KEYS.requests, "newer", f"1 {10**15} 0 {body}")
    leader.attend()
    reply = leader.requests.answer_to("newer")
    assert reply == Reply(ReplyCode.UNKNOWN_REQUEST, {}, "one", leader.term.epoch)


def test_exception_in_one_request_is_its_answer(leader: Leader):
    assert leader.carry_out(RequestKind.NEXT, limit="many").code is ReplyCode.FAILED
    assert leader.carry_out(RequestKind.REPORT).code is ReplyCode.REPORT


def test_interrupted_caller_withdraws_its_request(leader: Leader, monkeypatch):
    """After Ctrl-C the request must not be carried out."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(leader.clock, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        leader.requests.ask(Request(RequestKind.RUN, {"entry": "e"}), leader.clock, 60.0)
    assert leader.requests.waiting()[0] == []


# --- Long requests


class Killed(SystemExit):
    """End of the process."""


def test_request_in_which_leaders_end_is_rejected(leader: Leader):
    """It must not end one leader after the other."""
    tries: list[str] = []

    def prepare(*_: object) -> Any:
        tries.append(leader.term.nonce)
        raise Killed

    leader.stub.dispatcher.prepare = prepare
    run = leader.post(RequestKind.RUN, entry="e")
    for nonce in ("first", "second", "third"):
        leader.lead(nonce)
        with pytest.raises(Killed):
            leader.attend()
    leader.lead("fourth")
    pause = leader.post(RequestKind.PAUSE)
    leader.attend()
    assert leader.reply_to(run).code is ReplyCode.ENDED_TERMS
    assert leader.reply_to(pause).code is ReplyCode.PAUSED
    assert tries == ["first", "second", "third"]


def test_request_that_waits_for_the_broker_is_not_rejected(leader: Leader):
    run = leader.post(RequestKind.RUN, entry="e")
    for nonce in ("first", "second", "third", "fourth"):
        leader.lead(nonce)
        leader.attend()
    assert leader.stub.dispatcher.tries == 4
    assert leader.reply_to(run) is None


def begin_backfill(leader: Leader, minutes: int) -> Request:
    """Post a backfill of skipped instants. A page of the journal takes 1 s, and ten messages take 0.5 s."""
    until = leader.stub.now().replace(microsecond=0)
    since = until - timedelta(minutes=minutes)
    state = state_of(scheduled("e", every=60, last_run=until))
    leader.stub.due_queue.put(state, until + timedelta(hours=1))
    read = leader.client.xrevrange

    def read_slowly(*args: Any, **options: Any) -> Any:
        leader.clock.ahead += 1.0
        return read(*args, **options)

    leader.client.xrevrange = read_slowly
    skipped = {"verdict": "skipped", "entry": "e", "from": since.isoformat(), "until": until.isoformat(), "count": -1}
    pipe = leader.client.pipeline()
    pipe.xadd(KEYS.journal, {"n": 1, "d": json.dumps(skipped)})
    for n in range(2000):
        pipe.xadd(KEYS.journal, {"n": n + 2, "d": json.dumps({**skipped, "entry": f"other {n}"})})
    pipe.execute()
    arguments = {name: round(at.timestamp() * 1_000_000) for name, at in (("from", since), ("to", until))}
    return leader.post(RequestKind.BACKFILL, entry="e", **arguments)


class Sender:
    """Dispatcher that sends through the script."""

    capacity = 1000

    def __init__(self, leader: Leader) -> None:
        self.leader = leader

    def prepare(self, *_: object) -> Any:
        self.leader.clock.ahead += 0.05
        return push()

    def broker_error(self, _: object) -> None: ...

    def submit(self, term: Term, operations: Any) -> list[Answer]:
        return BatchScript(KEYS, 1000).run(self.leader.client, term, operations)


def test_backfill_works_in_steps_while_other_requests_are_answered(leader: Leader):
    """Its search of a large journal must not hold up the schedule either."""
    leader.stub.dispatcher = Sender(leader)
    backfill = begin_backfill(leader, 120)
    time.sleep(0.005)  # requests of one millisecond have no order
    second = leader.post(RequestKind.BACKFILL, **backfill.args)
    assert leader.attend() == 0.0
    turns = 1
    while leader.reply_to(backfill) is None:
        report = leader.post(RequestKind.REPORT)
        assert leader.attend(requests_pending=False) == 0.0
        assert leader.reply_to(report).code is ReplyCode.REPORT
        turns += 1
    assert turns > 15
    assert leader.reply_to(backfill).data["count"] == leader.client.llen("queue") == 120
    while leader.attend(requests_pending=False) == 0.0:
        pass
    assert leader.reply_to(second).data["count"] == 0
    assert leader.client.llen("queue") == 120


class DecliningSender(Sender):
    """Dispatcher whose task declines each third message, and fails for each fifth."""

    built = 0

    def prepare(self, *_: object) -> Any:
        self.built += 1
        if self.built % 3 == 0:
            raise Declined("task")
        if self.built % 5 == 0:
            raise ValueError("unable")
        return super().prepare()


def test_backfill_goes_on_after_a_message_that_cannot_be_built(leader: Leader):
    leader.stub.dispatcher = DecliningSender(leader)
    backfill = begin_backfill(leader, 15)
    while leader.reply_to(backfill) is None:
        leader.attend()
    outcomes = Counter(each["outcome"] for each in leader.reply_to(backfill).data["instants"])
    assert outcomes == {"enqueued": 8, "declined": 5, "not_sent": 2}
    assert leader.client.llen("queue") == 8


@pytest.mark.parametrize("ends", [True, False], ids=["slow", "hung"])
def test_arguments_of_a_request_do_not_hold_up_the_leader(leader: Leader, ends: bool):
    """A thread computes them. After a minute the request is refused."""
    released = threading.Event()
    leader.stub.dispatcher = Sender(leader)
    leader.stub.compute = lambda: released.wait(30.0)
    run, began = leader.post(RequestKind.RUN, entry="e"), time.monotonic()
    assert leader.attend() > 0
    assert leader.carry_out(RequestKind.REPORT).code is ReplyCode.REPORT
    assert leader.reply_to(run) is None
    assert time.monotonic() - began < 5.0
    if ends:
        released.set()
        wait_for(lambda: leader.attend() and leader.reply_to(run), 10, "the answer")
        assert leader.reply_to(run).code is ReplyCode.SENT
        assert leader.client.llen("queue") == 1
    else:
        leader.clock.ahead += 60.0
        leader.attend()
        assert leader.reply_to(run).code is ReplyCode.NOT_SENT
    released.set()


def test_hung_arguments_of_a_backfill_leave_what_was_sent_in_the_answer(leader: Leader):
    released, calls = threading.Event(), []
    leader.stub.dispatcher = Sender(leader)

    def compute() -> None:
        calls.append(None)
        if len(calls) == 2:
            released.wait(30.0)

    leader.stub.compute = compute
    backfill = begin_backfill(leader, 3)
    while leader.reply_to(backfill) is None:
        leader.clock.ahead += 10.0
        leader.attend()
    released.set()
    assert leader.client.llen("queue") == 1
    outcomes = [each["outcome"] for each in leader.reply_to(backfill).data["instants"]]
    assert sorted(outcomes) == ["enqueued", "not_sent", "not_sent"]


def test_withdrawn_backfill_stops(leader: Leader):
    leader.stub.dispatcher = Sender(leader)
    backfill = begin_backfill(leader, 120)
    while leader.client.llen("queue") == 0:
        assert leader.attend() == 0.0
    leader.requests.withdraw(backfill.id)
    sent = leader.client.llen("queue")
    assert leader.attend() > 0
    assert leader.client.llen("queue") == sent < 120


# --- Pause


@pytest.mark.parametrize("remembered", [Pause(1, "me", "work").encoded(), ""])
def test_new_leader_restores_a_pause_that_the_ledger_lost(remembered, shared_redis: RedisServer):
    shadow = Shadow()
    shadow.pauses, shadow.paused_gen = {Pause.FIELD: remembered}, "the ledger before"
    leader = Leader(shared_redis, shadow)
    leader.attend(requests_pending=False)
    assert leader.pause.in_force is bool(remembered)
    assert leader.stored_pause() == (remembered or None)
    assert text(leader.client.hget(KEYS.ledger, "m:paused_gen")) == leader.term.gen


@pytest.mark.parametrize("resumed", [False, True])
def test_leader_remembers_its_own_pause_and_resume_for_a_lost_ledger(resumed, leader: Leader):
    if resumed:
        leader.client.hset(KEYS.ledger, Pause.FIELD, Pause(1, "the leader before", "work").encoded())
        leader.attend(requests_pending=False)
    assert leader.carry_out(RequestKind.RESUME if resumed else RequestKind.PAUSE).ok
    leader.client.flushall()
    leader.lead("second")
    leader.attend(requests_pending=False)
    assert leader.pause.in_force is not resumed
    assert (leader.stored_pause() is not None) is not resumed


def test_pause_whose_answer_was_lost_is_in_force(leader: Leader, monkeypatch):
    """Redis knows the outcome: the pause is read before the next batch."""
    pause = leader.post(RequestKind.PAUSE, reason="work")
    lose_the_answer(leader, monkeypatch, written=True)
    leader.attend()
    leader.attend()
    assert leader.pause.in_force
    assert leader.reply_to(pause).code is ReplyCode.PAUSED
    assert [event.found for event in leader.events.of(events.Paused)] == [False]


# --- Pause of an entry


def test_paused_entry_is_kept_under_later_leaders_until_it_is_resumed(leader: Leader):
    assert leader.carry_out(RequestKind.PAUSE_ENTRY, entry="e", reason="work").code is ReplyCode.ENTRY_PAUSED
    assert leader.carry_out(RequestKind.PAUSE_ENTRY, entry="e").code is ReplyCode.ENTRY_ALREADY_PAUSED
    assert leader.carry_out(RequestKind.PAUSE_ENTRY, entry="ee").data["nearest"] == ["e"]
    leader.client.flushall()
    leader.lead("second")
    leader.attend(requests_pending=False)
    assert leader.pause.entries["e"].reason == "work"
    assert list(entry_pauses.in_force(text(leader.client.hget(KEYS.ledger, entry_pauses.FIELD)))) == ["e"]
    leader.stub.due_queue.drop(leader.stub.due_queue.get("e"))
    assert leader.carry_out(RequestKind.RESUME_ENTRY, entry="e").code is ReplyCode.ENTRY_RESUMED
    assert leader.carry_out(RequestKind.RESUME_ENTRY, entry="e").code is ReplyCode.NO_SUCH_ENTRY
    assert not leader.pause.entries["e"].in_force


def test_pause_of_an_entry_whose_answer_was_lost_is_in_force(leader: Leader, monkeypatch):
    leader.post(RequestKind.PAUSE_ENTRY, entry="e")
    lose_the_answer(leader, monkeypatch, written=True)
    leader.attend()
    leader.attend()
    assert leader.pause.entries["e"].in_force


def test_ended_pause_is_dropped_once_its_instants_have_a_verdict(leader: Leader):
    state = leader.stub.due_queue.get("e")
    leader.carry_out(RequestKind.PAUSE_ENTRY, entry="e")
    leader.stub.due_queue.put(state, leader.stub.now())
    leader.carry_out(RequestKind.RESUME_ENTRY, entry="e")
    gone = EntryPause("gone", 1, until_ms=2)
    kept = dict(leader.pause.entries)
    leader.pause.set(leader.term, None, {**kept, "gone": gone}, Shadow())
    other = state_of(scheduled("other", every=None, last_run=leader.stub.now()))
    leader.stub.due_queue.put(other, leader.stub.now())
    leader.carry_out(RequestKind.PAUSE_ENTRY, entry="other")
    assert set(leader.pause.entries) == {"e", "other"}
    leader.stub.due_queue.put(state, leader.stub.now() + timedelta(hours=1))
    leader.carry_out(RequestKind.RESUME_ENTRY, entry="other")
    assert set(leader.pause.entries) == {"other"}


class LockingSender(Sender):
    """Dispatcher for a task that declines to be built a second time. The first reply is lost."""

    built = submitted = 0

    def prepare(self, *_: object) -> Any:
        self.built += 1
        if self.built > 1:
            raise Declined("task")
        return push()

    def submit(self, term: Term, operations: Any) -> list[Answer]:
        answers = super().submit(term, operations)
        self.submitted += 1
        if self.submitted == 1:
            raise StoreUnavailable("the reply was lost")
        return answers


def test_message_of_a_request_is_built_once(leader: Leader):
    """A task with a lock would find its own, and the request would fail although its message was sent."""
    leader.stub.dispatcher = LockingSender(leader)
    run = leader.post(RequestKind.RUN, entry="e")
    for _ in range(3):
        leader.attend()
    assert leader.reply_to(run).code is ReplyCode.SENT
    assert leader.client.llen("queue") == 1


@pytest.mark.parametrize("locked", [True, False])
def test_requested_message_with_an_expiry_is_built_again(leader: Leader, locked: bool):
    """It would carry the earlier time. A task that then declines has locked itself out: the first one is sent."""

    class Timed(LockingSender):
        def prepare(self, *_: object) -> Any:
            self.built += 1
            if self.built > 1 and locked:
                raise Declined("task")
            return TimedPush((("LPUSH", "queue", f"{self.built}"),))

        def submit(self, term: Term, operations: Any) -> list[Answer]:
            self.submitted += 1
            if self.submitted == 1:
                raise StoreUnavailable("away", acted=False)
            return Sender.submit(self, term, operations)

    leader.stub.dispatcher = Timed(leader)
    run = leader.post(RequestKind.RUN, entry="e")
    wait_for(lambda: leader.attend() and leader.reply_to(run), 10, "the answer")
    assert leader.client.lrange("queue", 0, -1) == [b"1" if locked else b"2"]
