"""Requests that wait: what one of them can't have keeps none of the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
import redis

from ha_beat.clock import SystemClock
from ha_beat.dispatch import Answer
from ha_beat.errors import StoreUnavailable
from ha_beat.leader.due_queue import Agenda, Slot
from ha_beat.leader.request_handler import Control
from ha_beat.schedule.occurrence import Misfire
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Acquired, Attempt, RedisLeaseStore, Replica, Term
from ha_beat.store.request_queue import Request, Requests
from ha_beat.store.shadow import Shadow
from tests.support.servers import RedisServer

KEYS = Keys("waiting")


class Entry:
    name, task = "e", "task"


class Away:
    """A dispatcher whose broker does not answer."""

    tries = 0

    def prepare(self, *_: object) -> Any:
        self.tries += 1
        raise StoreUnavailable("the broker can't be reached", acted=False)


class Work:
    """What a control needs of an enqueuer, an elector and a source."""

    paused = False
    refused_as_paused = False

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.dispatcher = Away()
        self.agenda.put(Slot("e", Entry(), None, Misfire(), "", self.now()), self.now() + timedelta(hours=1))

    def serves(self, _: object) -> bool:
        return True

    def progress(self) -> None: ...

    def arguments(self, _: object) -> Any:
        return [], {}, {}

    def now(self) -> datetime:
        return datetime.now(UTC)


class Bench:
    def __init__(self, server: RedisServer) -> None:
        self.client: Any = redis.Redis.from_url(server.url)
        self.requests = Requests(lambda: self.client, KEYS, 1000)
        self.work: Any = Work()
        nothing: Any = None
        self.clock = Clock()
        self.control = Control(
            self.requests, nothing, self.work, self.work, self.work, Shadow(), "waiting", self.clock, lambda _: None
        )
        store = RedisLeaseStore(lambda: self.client, KEYS)
        attempt = Attempt(Replica("one", "host", 1, "0", "app"), "nonce", 0.0, 10.0, 1.0, "")
        answer = store.acquire(attempt, None, 0)
        assert isinstance(answer, Acquired)
        self.term: Term = answer.term

    def ask(self, action: str, **args: Any) -> Request:
        request = Request(action, args, by="tester")
        self.requests.post(request, lifetime=60.0)
        return request

    def attend(self) -> float:
        self.clock.ahead += 1.0
        return self.control.attend(self.term, called=True)


class Clock(SystemClock):
    ahead = 0.0

    def elapsed(self) -> float:
        return super().elapsed() + self.ahead


@pytest.fixture
def bench(shared_redis: RedisServer) -> Bench:
    return Bench(shared_redis)


def test_a_request_whose_broker_is_away_holds_up_no_other(bench: Bench) -> None:
    """A pause, above all, is what an operator wants then. The broker is not asked for each, and the run waits on."""
    runs = [bench.ask("run", entry="e") for _ in range(5)]
    pause = bench.ask("pause")
    assert bench.attend() > 0
    reply = bench.requests.answer_to(pause.id)
    assert reply is not None
    assert reply.ok
    assert bench.work.paused
    assert bench.work.dispatcher.tries == 1
    assert {request.id for request in bench.requests.waiting()[0]} == {request.id for request in runs}
    assert bench.attend() < 1.0
    assert bench.work.dispatcher.tries == 2


@pytest.mark.parametrize("became", ["done", "uncertain"])
def test_an_answer_that_did_not_get_through_is_given_again_as_it_was(
    bench: Bench, became: Literal["done", "uncertain"]
) -> None:
    """The broker is away by then: it would be told that nothing was enqueued, and run it once more by hand."""
    submitted: list[object] = []

    def submit(*_: object) -> list[Answer]:
        submitted.append(None)
        return [Answer(became if len(submitted) == 1 else "unsent")]

    bench.work.dispatcher.prepare = lambda *_: ()
    bench.work.dispatcher.submit = submit
    run, answer = bench.ask("run", entry="e"), bench.requests.answer

    def lost(*_: Any, **__: Any) -> str:
        bench.requests.answer = answer  # type: ignore[method-assign]
        raise StoreUnavailable("no answer")

    bench.requests.answer = lost  # type: ignore[method-assign]
    bench.attend()
    assert bench.requests.answer_to(run.id) is None
    bench.attend()
    reply = bench.requests.answer_to(run.id)
    assert reply is not None
    assert reply.ok is (became == "done")
    assert "not enqueued" not in reply.line
    assert len(submitted) == 1


def test_where_redis_itself_is_away_no_more_is_tried(bench: Bench) -> None:
    """Each of them would wait for as long as a command may take, on the main loop."""
    for action in ("run", "run", "pause", "report", "next"):
        bench.ask(action, entry="e")
    tried: list[str] = []

    def answer(_: Term, request: Request, *__: Any, **___: Any) -> str:
        tried.append(request.action)
        raise StoreUnavailable("no answer")

    bench.requests.answer = answer  # type: ignore[method-assign]
    bench.attend()
    assert len(tried) == 1


def test_a_request_whose_id_is_no_text_is_removed(bench: Bench) -> None:
    """It could never be answered: each renewal would call the leader, and it would count among those that wait."""
    bench.client.hset(KEYS.requests, b"\xff\xfe", b"1 2 {}")
    good = bench.ask("report")
    assert [request.id for request in bench.requests.waiting()[0]] == [good.id]
    assert bench.client.hlen(KEYS.requests) == 1
    bench.attend()
    assert bench.client.hlen(KEYS.requests) == 0
