"""Election of one replica in the test's process, and the lines that it would log."""

import logging
from contextlib import suppress
from typing import Any, Self

import redis
from celery import Celery

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.duties import Duties
from ha_beat.election.elector import Elector
from ha_beat.election.states import Leader, Timing
from ha_beat.errors import StoreError
from ha_beat.monitoring.logs import line_of
from ha_beat.reasons import TermEnd
from ha_beat.store.connections import Link, WatchedClient, link_to
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Replica
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.presence import RedisPresence
from tests.support.servers import RedisCluster, RedisServer, wait_for

KEYS = Keys("topology")
TIMEOUT = 1.0


def link(url: str, **options: Any) -> Link:
    return link_to(url, options, TIMEOUT, KEYS.lease)


def cluster_url(cluster: RedisCluster, user: str = "") -> str:
    return f"redis+cluster://{user}" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


def app_of(url: str, **conf: object) -> Celery:
    app = Celery("topology", broker=url, set_as_current=False)
    app.conf.update(conf)
    return app


def broker_link(url: str, **conf: object) -> BrokerLink:
    return BrokerLink(app_of(url, **conf), TIMEOUT)


def do(server: RedisServer, command: str, *arguments: object) -> Any:
    """Run a command, whose first words are separated by spaces."""
    client: Any = server.admin
    return client.execute_command(*command.split(), *arguments)


def before_7(server: RedisServer) -> bool:
    return int(server.admin.info("server")["redis_version"].split(".")[0]) < 7


def client_beside(way: Link) -> Any:
    """Return a client for the test's thread: that of the link is the election thread's alone."""
    client = way.client()
    return redis.Redis(connection_pool=client.connection_pool) if isinstance(client, WatchedClient) else client


class Campaigner:
    """Elector with a real link. A context manager: it campaigns from entry to exit."""

    def __init__(self, way: Link, *, name: str = "r1", ttl: float = 3.0) -> None:
        self.link = way
        self.lines: list[str] = []
        clock = SystemClock()
        hub = events.Events()

        def collect(event: events.Event) -> None:
            line = line_of(event, KEYS.cluster)
            if line is not None and line[0] >= logging.INFO:
                self.lines.append(f"{event.action}: {line[1] % line[2]}")

        hub.subscribe(collect)
        self.duties = Duties(clock, hub.emit)
        self.store = RedisLeaseStore(lambda: client_beside(way), KEYS)
        self.presence = RedisPresence(way.client, KEYS, clock, ttl / 3, sharded=way.sharded)
        self.elector = Elector(
            RedisLeaseStore(way.client, KEYS),
            self.presence,
            Replica(name, "host", 1, "0", "topology"),
            Timing(ttl, ttl / 4, 0.05, 3600.0),
            clock,
            hub.emit,
            duties=self.duties,
        )

    def __enter__(self) -> Self:
        self.elector.start()
        return self

    def __exit__(self, *_: object) -> None:
        def release(term: Any) -> None:
            with suppress(StoreError):
                self.store.release(term, TermEnd.SHUTDOWN)

        self.elector.close(release)
        if self.elector.handle.thread is not None:
            self.elector.handle.thread.join(20)

    @property
    def registered(self) -> str:
        """Return the presence channel that the lease names."""
        state = self.elector.state
        return state.presence if isinstance(state, Leader) else ""

    def wait_to_lead(self, timeout: float = 30.0) -> None:
        """Wait until it leads and Redis counts its presence."""
        wait_for(lambda: self.elector.handle.term and self.registered, timeout, "to lead, present")

    def wait_for_line(self, *parts: str, timeout: float = 30.0) -> str:
        def found() -> str | None:
            self.duties.check()
            return next((line for line in self.lines if all(part in line for part in parts)), None)

        try:
            return wait_for(found, timeout, f"a line with {parts}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.lines)) from None

    def wait_to_recover(self, timeout: float = 30.0) -> None:
        self.wait_for_line("lease_reachable", timeout=timeout)
        self.wait_to_lead(timeout)

    def told(self, part: str) -> int:
        return sum(part in line for line in self.lines)
