"""Presence connection of a replica, on a real Redis behind a proxy."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat.clock import SystemClock
from ha_beat.store.connections import link_to
from ha_beat.store.keys import Keys
from ha_beat.store.presence import PresenceError, RedisPresence
from tests.faults.proxy import TcpProxy
from tests.support.servers import RedisServer, wait_for

KEYS = Keys("presence")


def presence_at(url: str) -> RedisPresence:
    return RedisPresence(link_to(url, {}, 1.0, "key").client, KEYS, SystemClock(), ping_interval=0.2)


@pytest.fixture
def proxy(shared_redis: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(shared_redis.address) as made:
        yield made


@pytest.fixture
def presence(shared_redis: RedisServer, proxy: TcpProxy) -> Iterator[RedisPresence]:
    made = presence_at(proxy.url(shared_redis.url))
    yield made
    made.close()


def wait_until_lost(presence: RedisPresence, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    with pytest.raises(PresenceError):
        while time.monotonic() < until:
            presence.wait(0.05)


def test_each_connection_has_another_channel(presence: RedisPresence):
    """A standby that saw the previous one end must not count this one as absent."""
    presence.open()
    first = presence.channel
    presence.open()
    assert presence.channel not in ("", first)


@pytest.mark.parametrize("fault", ["cut", "blackhole"])
def test_lost_connection_is_detected(presence: RedisPresence, proxy: TcpProxy, fault: str):
    """When a machine or a path dies, the end of the connection does not arrive."""
    presence.open()
    getattr(proxy, fault)()
    wait_until_lost(presence)
    assert presence.channel == ""


def test_connection_that_the_client_restores_counts_as_lost(shared_redis: RedisServer, proxy: TcpProxy):
    """A user's client may reconnect without an error, although presence was lost or the server is another one."""
    client = redis.Redis.from_url(proxy.url(shared_redis.url), retry=Retry(NoBackoff(), 3))
    presence = RedisPresence(lambda: client, KEYS, SystemClock(), ping_interval=60.0)
    presence.open()
    proxy.cut()
    wait_until_lost(presence)
    presence.close()


def test_connection_that_answers_pings_is_kept(presence: RedisPresence):
    presence.open()
    channel = presence.channel
    assert not any(presence.wait(0.05) for _ in range(20))
    assert presence.channel == channel


def test_another_thread_ends_a_wait(presence: RedisPresence):
    """A wait that has not begun ends too. No number of calls blocks, because a signal handler may call it."""
    presence.wake()
    presence.open()
    for calls in (1, 10_000):
        for _ in range(calls):
            presence.wake()
        began = time.monotonic()
        while time.monotonic() - began < 0.01:
            assert not presence.wait(0.001)
    threading.Timer(0.05, presence.wake).start()
    began = time.monotonic()
    presence._subscription._next_ping += 60
    assert not presence.wait(30)
    assert time.monotonic() - began < 20


def test_wake_messages_that_arrive_together_are_all_received(presence: RedisPresence, shared_redis: RedisServer):
    presence.open()
    for _ in range(3):
        shared_redis.admin.publish(KEYS.wake, "released")
    assert [presence.wait(0.2) for _ in range(10)].count(True) == 3


def forked() -> None:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)


def multiprocessed() -> None:
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()


def executed() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)


@pytest.mark.parametrize("start_child", [forked, multiprocessed, executed])
def test_child_process_does_not_keep_a_dead_parent_present(shared_redis: RedisServer, start_child: Callable[[], None]):
    """A child that user code starts in beat outlives it, for example a process pool."""
    client, (reading, writing) = shared_redis.client(), os.pipe()
    parent = os.fork()
    if parent == 0:
        os.setpgid(0, 0)
        presence = presence_at(shared_redis.url)
        presence.open()
        start_child()
        for _ in range(5):
            presence.wait(0.1)
        os.write(writing, presence.channel.encode())
        time.sleep(60)
        os._exit(1)
    try:
        channel = os.read(reading, 200).decode()
        assert client.pubsub_numsub(channel) == [(channel, 1)], "the child has ended its parent's connection"
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        wait_for(lambda: client.pubsub_numsub(channel) == [(channel, 0)], 20, "the end of the presence")
    finally:
        os.killpg(parent, signal.SIGKILL)
        for descriptor in (reading, writing):
            os.close(descriptor)


def test_connection_that_is_not_confirmed_yet_is_closed_in_a_forked_child(
    presence: RedisPresence, monkeypatch: pytest.MonkeyPatch
):
    """Another thread may fork at any moment."""
    descriptors = []

    def confirm_in_child(subscription: Any, _: set[str]) -> None:
        sock = subscription._pubsub.connection._sock
        for _ in range(2):
            descriptors.append(sock.fileno())
            presence.close_copy()
        raise ConnectionError("only the child goes on")

    monkeypatch.setattr("ha_beat.store.presence._Subscription._confirm", confirm_in_child)
    with pytest.raises(PresenceError):
        presence.open()
    assert descriptors[0] >= 0 > descriptors[1]
