"""The connection by which Redis knows that a replica lives, on a real Redis behind a proxy."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat.clock import SystemClock
from ha_beat.store.connections import UrlLink
from ha_beat.store.keys import Keys
from ha_beat.store.presence import PresenceError, RedisPresence
from tests.faults.proxy import TcpProxy
from tests.support.servers import RedisServer

KEYS = Keys("presence")


@pytest.fixture
def proxy(shared_redis: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(shared_redis.address) as made:
        yield made


@pytest.fixture
def presence(shared_redis: RedisServer, proxy: TcpProxy) -> Iterator[RedisPresence]:
    link = UrlLink(proxy.url(shared_redis.url), {}, 1.0)
    made = RedisPresence(link.client, KEYS, SystemClock(), ping_interval=0.2)
    yield made
    made.close()


def wait_until_lost(presence: RedisPresence, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    with pytest.raises(PresenceError):
        while time.monotonic() < until:
            presence.wait(0.05)


def test_each_connection_has_a_channel_of_its_own(presence: RedisPresence) -> None:
    """A standby that saw the last one end must not take this one for absent."""
    presence.open()
    first = presence.channel
    presence.open()
    assert presence.channel not in ("", first)


def test_a_cut_is_noticed(presence: RedisPresence, proxy: TcpProxy) -> None:
    presence.open()
    proxy.cut()
    wait_until_lost(presence)
    assert presence.channel == ""


def test_a_connection_that_comes_back_by_itself_counts_as_lost(shared_redis: RedisServer, proxy: TcpProxy) -> None:
    """Clients of the user's making connect again in silence; but the holder was away, or this is another server."""
    client = redis.Redis.from_url(proxy.url(shared_redis.url), retry=Retry(NoBackoff(), 3))
    presence = RedisPresence(lambda: client, KEYS, SystemClock(), ping_interval=1.0)
    presence.open()
    proxy.cut()
    wait_until_lost(presence)
    presence.close()


def test_a_server_that_stops_answering_is_noticed(presence: RedisPresence, proxy: TcpProxy) -> None:
    """No end of the connection arrives when a machine or a path dies."""
    presence.open()
    proxy.blackhole()
    wait_until_lost(presence)


def test_one_that_answers_is_kept(presence: RedisPresence) -> None:
    """Over several pings."""
    presence.open()
    channel = presence.channel
    for _ in range(20):
        assert not presence.wait(0.05)
    assert presence.channel == channel
