"""A pause that Redis has lost is put back by the next leader, from what its replica has followed."""

from __future__ import annotations

from typing import Any

from ha_beat.clock import SystemClock
from ha_beat.control import Control
from ha_beat.lease import Acquired, Attempt, Keys, RedisLeaseStore, Replica
from ha_beat.requests import Pause, Requests
from ha_beat.state_loss import Shadow
from tests.servers import RedisServer

KEYS = Keys("kept")


class Work:
    """What a control needs of an enqueuer."""

    paused = False
    refused_as_paused = False

    def serves(self, _: object) -> bool:
        return True

    def reload(self) -> None: ...


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
