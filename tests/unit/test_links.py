"""The links to Redis: what a user's limits must not take from them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery import Celery

from ha_beat.dispatch.broker import BrokerLink
from ha_beat.redis_links import Link, link_to
from tests.servers import RedisServer


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
    """In a record that somebody has tampered with; whatever the options say of decoding."""
    shared_redis.client().hset("hash", mapping={"good": "1", "bad": b"\xff"})
    for url, options in (
        (shared_redis.url, {"decode_responses": True}),
        (f"{shared_redis.url}?decode_responses=1", {}),
    ):
        found = link_to(url, options, 2.5, "key").client().hgetall("hash")
        assert found == {b"good": b"1", b"bad": b"\xff"}
