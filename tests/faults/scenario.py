"""Scenario: everything that a test with faults needs, set up in one line.

    with ClusterScenario(spec={"fast": {"every": 0.2}}, settings={"lease_ttl": 3}) as scenario:
        scenario.begin()
        scenario.nemesis.kill_leader(down=0)
        scenario.judge()

`cluster` holds the processes, `nemesis` injects faults, `history` records faults and messages, `checker` judges it.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import pytest

from tests.faults.checker import Expectation, Interval, Report, Skipped, check, skipped_from_journal
from tests.faults.clock import SteppedClock
from tests.faults.cluster import BeatCluster, Replica
from tests.faults.history import AmqpQueueConsumer, History, RedisQueueConsumer
from tests.faults.nemesis import Nemesis
from tests.faults.proxy import TcpProxy
from tests.support.servers import RabbitMQ, RedisServer, need


def due_times(*lead_times: float) -> Iterator[float]:
    """Yield the instant after each lead time. A slow machine that missed one tries the next, longer one."""
    for lead_time in lead_times:
        yield time.time() + lead_time
    pytest.fail(f"the replicas were not up after {lead_times[-1] - 1:g} s")


class ClusterScenario:
    """Servers, proxies, clocks, replicas, a consumer at the queue and a nemesis. A context manager.

    redis: the lease's Redis, and the broker unless `broker` is given. The default is a new one with appendonly and
    fsync always, so that a restart loses nothing acknowledged. broker: a RabbitMQ, or a Redis that is not the lease's.
    proxied: each replica has its own proxy to each server. clocks: each replica has its own wall clock. Further
    arguments go to BeatCluster.
    """

    redis: RedisServer
    cluster: BeatCluster
    nemesis: Nemesis

    def __init__(
        self,
        *,
        redis: RedisServer | None = None,
        broker: RabbitMQ | RedisServer | None = None,
        replicas: int = 3,
        proxied: bool = True,
        clocks: bool = False,
        queues: Sequence[str] = ("celery",),
        replica_env: Sequence[Mapping[str, str]] = (),
        **cluster_options: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._given_redis = redis
        self._broker = broker
        self._count = replicas
        self._proxied = proxied
        self._with_clocks = clocks
        self._queues = queues
        self._replica_env = [*replica_env, *[{}] * (replicas - len(replica_env))]
        self._cluster_options = cluster_options
        self.history = History()
        self.clocks: list[SteppedClock] = []
        self.lease_proxies: list[TcpProxy] = []
        self.broker_proxies: list[TcpProxy] = []
        self._lost_skips: list[Skipped] = []

    def _proxies(self, url: str) -> list[TcpProxy]:
        if not self._proxied:
            return []
        return [self._stack.enter_context(TcpProxy.for_url(url)) for _ in range(self._count)]

    def _own_redis(self) -> RedisServer:
        made = need(lambda: RedisServer(appendonly=True, extra_args=("--appendfsync", "always")))
        self._stack.callback(made.close)
        return made

    def _set_up(self) -> None:
        self.redis = redis = self._given_redis or self._own_redis()
        broker = self._broker or redis
        self.lease_proxies = self._proxies(redis.url)
        self.broker_proxies = self.lease_proxies if broker is redis else self._proxies(broker.url)
        if self._with_clocks:
            self.clocks = [need(SteppedClock) for _ in range(self._count)]
        environments = [clock.env for clock in self.clocks] or [{}] * self._count
        lease_urls = [proxy.url(redis.url) for proxy in self.lease_proxies] or redis.url
        self.cluster = BeatCluster(
            [proxy.url(broker.url) for proxy in self.broker_proxies] or broker.url,
            lease_urls=None if broker is redis else lease_urls,
            replicas=self._count,
            admin_url=redis.url,
            replica_env=[{**one, **other} for one, other in zip(self._replica_env, environments, strict=True)],
            **self._cluster_options,
        )
        self._stack.enter_context(self.cluster)
        consumer = AmqpQueueConsumer if isinstance(broker, RabbitMQ) else RedisQueueConsumer
        self._stack.enter_context(consumer(self.history, broker.url, self._queues))
        paths = self.lease_proxies, self.broker_proxies
        self.nemesis = Nemesis(self.cluster, self.history, redis, self._broker, *paths, self.clocks)

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def begin(self, timeout: float = 30.0) -> Replica:
        """Wait until every replica is up, one leads and a first message has arrived. Return the leader."""
        self.cluster.wait_until_up(timeout)
        leader = self.cluster.wait_for_leader(timeout)
        self.history.wait_for_messages(1, timeout)
        return leader

    def more(self, count: int, entry: str | None = None, timeout: float = 30.0) -> None:
        """Wait for `count` further messages, of one entry if named."""
        self.history.wait_for_more(count, entry, timeout)

    @property
    def intervals(self) -> list[Interval]:
        """Return the entries of the schedule with an interval of less than a minute."""
        lines = (self.cluster.spec or {}).items()
        return [Interval(name, line["every"]) for name, line in lines if line.get("every", 60) < 60]

    def remember_skips(self) -> None:
        """Keep the skips of the journal before it is lost."""
        self._lost_skips = self.journal_skips()

    def journal_skips(self) -> list[Skipped]:
        """Return the skipped and uncertain occurrences of the journal, also of one that was lost."""
        return list(dict.fromkeys([*self._lost_skips, *skipped_from_journal(self.cluster.journal())]))

    def report(self, expected: Iterable[Expectation] = ()) -> Report:
        """Check the history so far."""
        return check(self.history.events(), expected, self.journal_skips())

    def clean_report(self, expected: Iterable[Expectation] = ()) -> Report:
        """Assert that the report has no problems, and return it."""
        report = self.report(expected)
        assert report.ok, f"{report}\n{self.cluster.logs()}"
        return report

    def judge(self) -> Report:
        """Assert that every replica runs and that no interval entry has a problem. Return the report."""
        self.cluster.assert_all_alive()
        return self.clean_report(self.intervals)
