"""Ctrl-C at a command that waits for the leader."""

from __future__ import annotations

import pytest

from ha_beat.clock import SystemClock
from ha_beat.reasons import RequestKind
from ha_beat.store.keys import Keys
from ha_beat.store.request_queue import Request, Requests
from tests.support.servers import RedisServer


class Interrupted(SystemClock):
    """Somebody presses Ctrl-C during the first wait."""

    def sleep(self, seconds: float) -> None:
        raise KeyboardInterrupt


def test_a_request_that_is_broken_off_is_taken_back(shared_redis: RedisServer) -> None:
    """Whoever breaks off `run` does not want it to run a moment later."""
    client = shared_redis.client()
    requests = Requests(lambda: client, Keys("interrupted"))
    with pytest.raises(KeyboardInterrupt):
        requests.ask(Request(RequestKind.RUN, {"entry": "e"}), Interrupted(), 60.0)
    assert requests.waiting()[0] == []
