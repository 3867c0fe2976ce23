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
