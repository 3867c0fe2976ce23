"""Answers of the request handler: lost, withdrawn, expired and unreadable requests, and pauses."""

import time
from datetime import timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.dispatch import Answer
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import AnswerKind, ReplyCode, RequestKind
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import MOST_WAITING, Reply, Request, TooManyRequests
from ha_beat.store.scripts import text
from ha_beat.store.shadow import Shadow
from tests.integration.leader.request_leader import KEYS, RequestLeader
from tests.support.dispatchers import push
from tests.support.entries import scheduled, state_of
from tests.support.servers import RedisServer


@pytest.fixture
def leader(shared_redis: RedisServer) -> RequestLeader:
    return RequestLeader(shared_redis)


def lose_the_answer(leader: RequestLeader, monkeypatch: pytest.MonkeyPatch, *, written: bool) -> None:
    """Fail the next answer, after it was written or before."""
    answer = leader.requests.answer

    def lost(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        if written:
            answer(*args, **kwargs)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(leader.requests, "answer", lost)


def test_unreachable_broker_holds_up_only_requests_that_need_it(leader: RequestLeader):
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
def test_lost_answer_is_repeated_unchanged(answer, code, leader: RequestLeader, monkeypatch):
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
    assert leader.reply_to(run) is None
    leader.attend()
    assert leader.reply_to(run).code is code
    assert len(submitted) == 1


def test_round_ends_at_the_first_request_that_redis_fails(leader: RequestLeader, monkeypatch):
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
def test_request_that_is_withdrawn_before_its_answer_changes_nothing(kind, leader: RequestLeader, monkeypatch):
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


def test_memory_of_requests_that_no_longer_wait_is_dropped(leader: RequestLeader):
    """Each request is begun, cannot be sent, and is then withdrawn by its caller or expires."""
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
    assert leader.handler._messages._begun_before == leader.handler._begun == {}
    assert leader.client.hlen(KEYS.requests) == 0


def test_progress_of_lost_requests_is_dropped(leader: RequestLeader):
    """The key of the requests was deleted or evicted."""
    for number in range(50):
        leader.post(RequestKind.REPORT)
        leader.client.hset(KEYS.progress, f"begun {number}", 1)
        leader.client.delete(KEYS.requests)
    waits = leader.post(RequestKind.REPORT)
    leader.client.hset(KEYS.progress, waits.id, 1)
    leader.requests.waiting()
    assert leader.client.hkeys(KEYS.progress) == [waits.id.encode()]


def test_expired_requests_make_room_without_a_leader(leader: RequestLeader):
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


def test_request_whose_id_is_not_text_is_removed(leader: RequestLeader):
    """Such a request cannot be answered, and would wait forever."""
    leader.client.hset(KEYS.requests, b"\xff\xfe", b"1 2 {}")
    good = leader.post(RequestKind.REPORT)
    assert [request.id for request in leader.requests.waiting()[0]] == [good.id]
    assert leader.client.hlen(KEYS.requests) == 1
    leader.attend()
    assert leader.client.hlen(KEYS.requests) == 0


@pytest.mark.parametrize("body", ['{"kind": "of a newer version", "args": {}, "by": "me"}', "{"])
def test_request_of_unknown_kind_is_answered(body, leader: RequestLeader):
    leader.client.hset(KEYS.requests, "newer", f"1 {10**15} 0 {body}")
    leader.attend()
    assert leader.requests.answer_to("newer") == Reply(ReplyCode.UNKNOWN_REQUEST, {}, "one", leader.term.epoch)


def test_exception_in_one_request_is_its_answer(leader: RequestLeader):
    assert leader.carry_out(RequestKind.NEXT, limit="many").code is ReplyCode.FAILED
    assert leader.carry_out(RequestKind.REPORT).code is ReplyCode.REPORT


def test_interrupted_caller_withdraws_its_request(leader: RequestLeader, monkeypatch):
    """After Ctrl-C the request must not be carried out."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(leader.clock, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        leader.requests.ask(Request(RequestKind.RUN, {"entry": "e"}), leader.clock, 60.0)
    assert leader.requests.waiting()[0] == []


# --- Pause


@pytest.mark.parametrize("remembered", [Pause(1, "me", "work").encoded(), ""])
def test_new_leader_restores_a_pause_that_the_ledger_lost(remembered, shared_redis: RedisServer):
    shadow = Shadow()
    shadow.pauses, shadow.paused_gen = {Pause.FIELD: remembered}, "the ledger before"
    leader = RequestLeader(shared_redis, shadow)
    leader.attend(requests_pending=False)
    assert leader.pause.in_force is bool(remembered)
    assert leader.stored_pause() == (remembered or None)
    assert text(leader.client.hget(KEYS.ledger, "m:paused_gen")) == leader.term.gen


@pytest.mark.parametrize("resumed", [False, True])
def test_leader_remembers_its_own_pause_and_resume_for_a_lost_ledger(resumed, leader: RequestLeader):
    if resumed:
        leader.client.hset(KEYS.ledger, Pause.FIELD, Pause(1, "the leader before", "work").encoded())
        leader.attend(requests_pending=False)
    assert leader.carry_out(RequestKind.RESUME if resumed else RequestKind.PAUSE).ok
    leader.client.flushall()
    leader.lead("second")
    leader.attend(requests_pending=False)
    assert leader.pause.in_force is not resumed
    assert (leader.stored_pause() is not None) is not resumed


@pytest.mark.parametrize("kind", [RequestKind.PAUSE, RequestKind.PAUSE_ENTRY])
def test_pause_whose_answer_was_lost_is_in_force(leader: RequestLeader, monkeypatch, kind: RequestKind):
    """Redis knows the outcome: the pause is read before the next batch."""
    pause = leader.post(kind, **({"entry": "e"} if kind is RequestKind.PAUSE_ENTRY else {}))
    lose_the_answer(leader, monkeypatch, written=True)
    leader.attend()
    leader.attend()
    if kind is RequestKind.PAUSE_ENTRY:
        assert leader.pause.entries["e"].in_force
    else:
        assert leader.pause.in_force
        assert leader.reply_to(pause).code is ReplyCode.PAUSED
        assert [event.found for event in leader.events.of(events.Paused)] == [False]


# --- Pause of an entry


def test_paused_entry_is_kept_under_later_leaders_until_it_is_resumed(leader: RequestLeader):
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


def test_ended_pause_is_dropped_once_its_instants_have_a_verdict(leader: RequestLeader):
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
