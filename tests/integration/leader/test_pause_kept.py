"""A pause that Redis has lost is put back by the next leader, from what its replica has followed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ha_beat.clock import SystemClock
from ha_beat.leader.request_handler import Control
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Acquired, Attempt, RedisLeaseStore, Replica
from ha_beat.store.request_queue import Pause, Request, Requests
from ha_beat.store.shadow import Shadow
from tests.support.servers import RedisServer

KEYS = Keys("kept")


class Moving:
    """What a control needs of an elector."""

    def progress(self) -> None: ...


class Work:
    """What a control needs of an enqueuer."""

    paused = False
    refused_as_paused = False

    def serves(self, _: object) -> bool:
        return True

    def reload(self) -> None: ...

    def now(self) -> datetime:
        return datetime.now(UTC)


def learned(server: RedisServer, shadow: Shadow) -> tuple[bool, str | None]:
    """Whether a leader that begins its term holds the cluster for paused, and what Redis has of it then."""
    client = server.client()
    store = RedisLeaseStore(lambda: client, KEYS)
    answer = store.acquire(Attempt(Replica("one", "host", 1, "0", "app"), "nonce", 0.0, 10.0, 1.0, ""), None, 0)
    assert isinstance(answer, Acquired)
    work: Any = Work()
    nothing: Any = None
    requests = Requests(lambda: client, KEYS, 1000)
    control = Control(requests, nothing, work, nothing, nothing, shadow, "kept", SystemClock(), lambda _: None)
    control.attend(answer.term, called=False)
    return work.paused, client.hget(KEYS.ledger, Pause.FIELD)  # type: ignore[return-value]


def followed(gen: str, pause: str) -> Shadow:
    made = Shadow()
    made.paused, made.paused_gen = pause, gen
    return made


def test_a_pause_of_the_ledger_that_was_lost_is_put_back(shared_redis: RedisServer) -> None:
    pause = Pause(1, "me", "work").encoded()
    assert learned(shared_redis, followed("the one before", pause)) == (True, pause)


def test_no_pause_is_made_up(shared_redis: RedisServer) -> None:
    assert learned(shared_redis, followed("the one before", "")) == (False, None)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_leader_itself_remembers_what_it_was_asked(resumed: bool, shared_redis: RedisServer) -> None:
    """It may be the next to lead, or the only one: a pause is put back, and one that is over is not."""
    client, shadow = shared_redis.client(), Shadow()
    store, requests = RedisLeaseStore(lambda: client, KEYS), Requests(lambda: client, KEYS, 1000)
    work: Any = Work()
    nothing: Any = None
    elector: Any = Moving()
    control = Control(requests, nothing, work, nothing, elector, shadow, "kept", SystemClock(), lambda _: None)

    def attend(nonce: str, *asked: str, found: str = "") -> None:
        attempt = Attempt(Replica("one", "host", 1, "0", "app"), nonce, 0.0, 10.0, 1.0, "")
        answer = store.acquire(attempt, None, 0)
        assert isinstance(answer, Acquired)
        if found:
            client.hset(KEYS.ledger, Pause.FIELD, found)
        control.attend(answer.term, called=False)
        for action in asked:
            request = Request(action, by="tester")
            requests.post(request, lifetime=60.0)
            control.attend(answer.term, called=True)
            reply = requests.answer_to(request.id)
            assert reply is not None
            assert reply.ok, reply

    if resumed:
        attend("first", "resume", found=Pause(1, "the leader before", "work").encoded())
    else:
        attend("first", "pause")
    client.flushall()
    attend("second")
    assert work.paused is not resumed
    assert bool(client.hget(KEYS.ledger, Pause.FIELD)) is not resumed
