"""The links to Redis: what a user's limits must not take from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery

from ha_beat.dispatch.broker import BrokerLink
from ha_beat.store.connections import Link, link_to
from ha_beat.store.scripts import Script
from tests.support.servers import RedisServer


def by_url(server: RedisServer) -> Link:
    return link_to(server.url, {"max_connections": 1}, 2.5, "key")


def by_broker(server: RedisServer) -> Link:
    app = Celery("links", broker=server.url, set_as_current=False)
    app.conf.broker_transport_options = {"max_connections": 1}
    return BrokerLink(app, 2.5)


@pytest.mark.parametrize("make", [by_url, by_broker])
def test_a_limit_on_connections_leaves_room_for_presence(
    make: Callable[[RedisServer], Link], shared_redis: RedisServer
) -> None:
    """Its connection is held all the time: with no other, no renewal would get through."""
    client = make(shared_redis).client()
    listener = client.pubsub()
    listener.subscribe("channel")
    assert client.ping()
    listener.close()


def test_bytes_that_are_no_text_make_no_reply_unreadable(shared_redis: RedisServer) -> None:
    """A corrupt record is readable with any decoding options."""
    shared_redis.client().hset("hash", mapping={"good": "1", "bad": b"\xff"})
    for url, options in (
        (shared_redis.url, {"decode_responses": True}),
        (f"{shared_redis.url}?decode_responses=1", {}),
    ):
        found = link_to(url, options, 2.5, "key").client().hgetall("hash")
        assert found == {b"good": b"1", b"bad": b"\xff"}


class Flushed(redis.Redis):
    """A client beside which another one empties the script cache, whenever it has sent something."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)
        finally:
            if not args[0].startswith("SCRIPT FLUSH"):
                self.script_flush()


def test_a_script_runs_though_the_script_cache_is_emptied_all_the_time(shared_redis: RedisServer) -> None:
    """Between loading and calling it, too: else a leader loses the lease, and a batch looks like an entry's fault."""
    script = Script("observe")
    with Flushed.from_url(shared_redis.url) as client:
        for _ in range(2):
            assert len(script(client, ["nothing"], [])) == 4
