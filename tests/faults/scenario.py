"""Scenario with servers, proxies, clocks, replicas, a consumer at the queue and a nemesis, set up in one line.

with ClusterScenario(spec={"fast": {"every": 0.2}}, settings={"lease_ttl": 3}) as scenario:
    scenario.begin()
    scenario.nemesis.kill_leader(down=0)
    report = scenario.report([Interval("fast", 0.2)])
    assert report.ok, str(report)
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from tests.faults.checker import Expectation, Report, Skipped, check, skipped_from_journal
from tests.faults.clock import SteppedClock
from tests.faults.cluster import BeatCluster, Replica
from tests.faults.history import AmqpQueueConsumer, History, QueueConsumer, RedisQueueConsumer
from tests.faults.nemesis import Nemesis
from tests.faults.proxy import TcpProxy
from tests.support.servers import RabbitMQ, RedisServer, need


def due_times(*lead_times: float) -> Iterator[float]:
    """Yield an instant that is the first lead time from now; the next, for slow machines, if that was too soon."""
    for lead_time in lead_times:
        yield time.time() + lead_time
    pytest.fail(f"the replicas were not up after {lead_times[-1] - 1:g} s")


class ClusterScenario:
    """All parts of one run. A context manager: the parts that it starts end with it.

    redis: the lease's Redis, and the broker unless `broker` is given. The default is a new one with appendonly and
    fsync always, so that a restart loses nothing acknowledged. broker: a RabbitMQ, or a Redis that is not the lease's.
    proxied: each replica has its own proxy to each server. clocks: each replica has its own wall clock. Further
    arguments go to BeatCluster.
    """

    def __init__(
        self,
        *,
        redis: RedisServer | None = None,
        broker: RabbitMQ | RedisServer | None = None,
        replicas: int = 3,
        proxied: bool = True,
        clocks: bool = False,
        queues: Sequence[str] = ("celery",),
        history_path: Path | None = None,
        replica_env: Sequence[Mapping[str, str]] = (),
        **cluster_options: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._given_redis = redis
        self._given_broker = broker
        self._count = replicas
        self._proxied = proxied
        self._with_clocks = clocks
        self._queues = queues
        self._replica_env = [*replica_env, *[{}] * (replicas - len(replica_env))]
        self._cluster_options = cluster_options
        self.history = History(history_path)
        self._skips: dict[Skipped, None] = {}
        self.redis: RedisServer
        self.cluster: BeatCluster
        self.nemesis: Nemesis
        self.consumer: QueueConsumer
        self.clocks: list[SteppedClock] = []
        self.lease_proxies: list[TcpProxy] = []
        self.broker_proxies: list[TcpProxy] = []

    def _proxies(self, url: str) -> list[TcpProxy]:
        if not self._proxied:
            return []
        return [self._stack.enter_context(TcpProxy.for_url(url)) for _ in range(self._count)]

    def _own_redis(self) -> RedisServer:
        made = need(lambda: RedisServer(appendonly=True, extra_args=("--appendfsync", "always")))
        self._stack.callback(made.close)
        return made

    def _set_up(self) -> None:
        self._stack.callback(self.history.close)
        self.redis = self._given_redis or self._own_redis()
        broker = self._given_broker or self.redis
        self.lease_proxies = self._proxies(self.redis.url)
        same = broker is self.redis
        self.broker_proxies = self.lease_proxies if same else self._proxies(broker.url)
        if self._with_clocks:
            self.clocks = [need(SteppedClock) for _ in range(self._count)]
        self.cluster = BeatCluster(
            [proxy.url(broker.url) for proxy in self.broker_proxies] or broker.url,
            lease_urls=None if same else [proxy.url(self.redis.url) for proxy in self.lease_proxies] or self.redis.url,
            replicas=self._count,
            admin_url=self.redis.url,
            replica_env=[
                {**env, **(self.clocks[number].env if self.clocks else {})}
                for number, env in enumerate(self._replica_env)
            ],
            **self._cluster_options,
        )
        self._stack.enter_context(self.cluster)
        consumer = AmqpQueueConsumer if isinstance(broker, RabbitMQ) else RedisQueueConsumer
        self.consumer = self._stack.enter_context(consumer(self.history, broker.url, self._queues))
        self.nemesis = Nemesis(
            self.cluster,
            self.history,
            redis=self.redis,
            broker=None if same else broker,
            lease_proxies=self.lease_proxies,
            broker_proxies=self.broker_proxies,
            clocks=self.clocks,
        )

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
        self.history.wait_for_messages(len(self.history.messages(entry)) + count, timeout, entry)

    def remember_skips(self) -> None:
        """Keep the skips of the journal before it is lost."""
        self._skips.update(dict.fromkeys(skipped_from_journal(self.cluster.journal())))

    def journal_skips(self) -> list[Skipped]:
        """Return the skipped and uncertain occurrences of the journal, also of one that was lost."""
        return list({**self._skips, **dict.fromkeys(skipped_from_journal(self.cluster.journal()))})

    def report(self, expected: Iterable[Expectation] = (), skipped: Sequence[Skipped] | None = None) -> Report:
        """Check the history so far. Skipped occurrences come from the journal unless given."""
        return check(self.history.events(), expected, self.journal_skips() if skipped is None else skipped)

    def clean_report(self, expected: Iterable[Expectation] = ()) -> Report:
        """Assert that the report has no problems, and return it."""
        report = self.report(expected)
        assert report.ok, f"{report}\n{self.cluster.logs()}"
        return report
