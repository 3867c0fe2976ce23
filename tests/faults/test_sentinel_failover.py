"""Sentinel fails over the Redis of lease, ledger and queues, to a complete or a lagging replica."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import redis
from redis.sentinel import Sentinel

from tests.faults.checker import Interval, Report, Skipped, check, skipped_from_journal
from tests.faults.cluster import BeatCluster
from tests.faults.history import History, RedisQueueConsumer
from tests.support.servers import RedisServer, SentinelCluster, need

TTL = 3.0
SPEC = {"fast": {"every": 0.2}, "slow": {"every": 2.0}}
EXPECTED = [Interval("fast", 0.2), Interval("slow", 2.0)]


class SentinelConsumer(RedisQueueConsumer):
    """Consumer that follows the master named by the Sentinels."""

    def __init__(self, history: History, sentinels: SentinelCluster) -> None:
        super().__init__(history, "")
        self._sentinels = sentinels

    def connect(self) -> redis.Redis:
        asked = Sentinel(self._sentinels.sentinel_addresses, socket_timeout=1.0)
        return asked.master_for(self._sentinels.name, socket_timeout=2.0)


@dataclass
class Run:
    sentinels: SentinelCluster
    cluster: BeatCluster
    history: History
    old: RedisServer
    replica: RedisServer
    before: Sequence[Skipped] = ()

    def loss_is_logged(self) -> bool:
        return any("action=state_lost" in replica.log_text() for replica in self.cluster)

    def fall_behind(self, seconds: float) -> None:
        """Stop replication, so that the replica lacks all later writes of the master.

        A message that it kept although it was consumed would arrive a second time.
        """

        def pause() -> None:
            self.sentinels.wait_until_synced(5)
            self.replica.pause()
            # Its buffer would receive the later writes.
            self.old.admin.execute_command("CLIENT", "KILL", "TYPE", "replica")

        self._do_with_an_empty_queue(pause)
        time.sleep(seconds)

    def _do_with_an_empty_queue(self, act: Callable[[], object]) -> None:
        admin = self.old.admin
        while True:
            admin.client_pause(10_000, all=False)
            if not admin.llen("celery"):
                break
            admin.client_unpause()
            time.sleep(0.02)
        act()
        if self.old.alive:
            admin.client_unpause()

    def fail_over(self) -> float:
        """Kill the master; return the seconds until messages arrive again."""
        self.before = self.skips(self.old.admin)
        self.history.fault("master_killed")
        # A message that is not consumed yet would be lost with the master.
        self._do_with_an_empty_queue(self.old.kill)
        self.replica.resume()
        new = self.sentinels.wait_for_failover(self.old)
        assert new is self.replica
        struck = self.history.faults("master_killed")[-1]["t"]
        return float(self.history.wait_for_message_after(struck + 0.5, "fast")["t"] - struck)

    def skips(self, admin: redis.Redis) -> list[Skipped]:
        return skipped_from_journal(self.cluster.journal(admin))

    def judge(self) -> Report:
        self.cluster.assert_all_alive()
        skips = list(dict.fromkeys([*self.before, *self.skips(self.replica.admin)]))
        report = check(self.history.events(), EXPECTED, skips)
        assert report.ok, f"{report}\n{self.cluster.logs()}"
        return report


@pytest.fixture
def run() -> Iterator[Run]:
    with contextlib.ExitStack() as stack:
        sentinels = stack.enter_context(need(SentinelCluster))
        history = History()
        cluster = BeatCluster(
            sentinels.url,
            spec=SPEC,
            settings={"lease_ttl": TTL},
            config={"broker_transport_options": sentinels.transport_options},
            admin_url=sentinels.master.url,
        )
        stack.enter_context(cluster)
        stack.enter_context(SentinelConsumer(history, sentinels))
        made = Run(sentinels, cluster, history, sentinels.master, sentinels.replicas[0])
        cluster.wait_until_up()
        cluster.wait_for_leader()
        history.wait_for_messages(2, 20, "slow")
        time.sleep(1.5)
        yield made


@pytest.mark.slow
def test_synced_failover_loses_no_occurrence(run: Run, found):
    """The new master is complete: only messages in flight when the old one died are uncertain."""
    back = run.fail_over()
    run.history.wait_for_more(20, "fast", 60)
    report = run.judge()
    assert not run.loss_is_logged()
    found(f"running again after {back:.1f} s")
    found(report)


@pytest.mark.slow
@pytest.mark.parametrize("leader_dies", [False, True])
def test_lagging_failover_is_a_loss_of_state(run: Run, leader_dies: bool, found):
    """The new master lacks two seconds of enqueued messages. None of them is enqueued again."""
    run.fall_behind(2.0)
    leader = run.cluster.wait_for_leader()
    if leader_dies:
        run.old.pause()
        leader.kill()
        run.old.resume()
    back = run.fail_over()
    if leader_dies:
        leader.start()
    run.history.wait_for_more(20, "fast", 60)
    report = run.judge()
    assert run.loss_is_logged()
    assert report.skipped["state_loss"] > 0
    found(f"running again after {back:.1f} s")
    found(report)
