"""Nemesis: each fault takes effect, is recorded and is healed. The seed of a storm repeats it."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.cluster import STOCK_SCHEDULER
from tests.faults.nemesis import FAULTS, Storm
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RedisServer, wait_for

SPEC = {"fast": {"every": 0.1}}


@pytest.fixture
def scenario() -> Iterator[ClusterScenario]:
    """Start two stock beats that enqueue every 0.1 s, with their own proxies and clocks."""
    with ClusterScenario(replicas=2, scheduler=STOCK_SCHEDULER, spec=SPEC, clocks=True, proxied=True) as made:
        made.cluster.wait_until_up()
        made.history.wait_for_messages(1, timeout=30)
        yield made


def pretend_to_lead(scenario: ClusterScenario, number: int) -> None:
    """Write the lease record that names a stock beat as its holder."""
    replica = scenario.cluster[number]
    record = {"state": "held", "holder": replica.name, "epoch": "7", "pid": str(replica.pid)}
    scenario.redis.admin.hset(scenario.cluster.key("lease"), mapping=record)


@pytest.mark.slow
def test_faults_strike_the_leader_and_are_recorded(scenario: ClusterScenario):
    """The lease record names the target. Killed, ended and paused replicas come back."""
    nemesis, cluster = scenario.nemesis, scenario.cluster
    for number in (0, 1):
        pretend_to_lead(scenario, number)
        assert cluster.leader() is cluster[number]
        assert cluster.epoch() == 7
        assert nemesis.standby() is cluster[1 - number]
    assert nemesis.kill_leader(down=0) is cluster[1]
    assert (cluster[0].starts, cluster[1].starts) == (1, 2)
    assert cluster.leader() is None  # the record still names the pid that is gone
    pretend_to_lead(scenario, 0)
    paused = threading.Thread(target=nemesis.pause_leader, args=(0.5,))
    paused.start()
    wait_for(lambda: cluster[0].paused, what="the pause")
    assert cluster.standbys() == [cluster[1]]
    paused.join(5)
    assert not cluster[0].paused
    assert nemesis.term_leader() is cluster[0]
    # Stock beat exits with 1 if the signal arrives in the middle of a tick, because its shelf is closed.
    assert cluster[0].exit_code in {0, 1}, cluster[0].log_tail()
    with pytest.raises(AssertionError, match="beat-0 ended"):
        cluster.assert_all_alive()
    nemesis.heal()
    cluster.assert_all_alive()
    assert [(event["fault"], event["phase"]) for event in nemesis.history.faults()] == [
        ("kill_leader", "at"),
        ("pause_leader", "start"),
        ("pause_leader", "end"),
        ("term_leader", "at"),
        ("heal", "at"),
    ]


@pytest.mark.slow
def test_paths_and_servers_fail_and_recover(scenario: ClusterScenario):
    """Nothing arrives while Redis is away or every path is dead; afterwards the same processes continue."""
    nemesis = scenario.nemesis
    nemesis.redis_pause(0.3)
    nemesis.redis_kill(0.3)
    nemesis.redis_restart(persist=True)
    for replica in scenario.cluster:
        assert nemesis.cut_path("lease", replica) >= 0
        nemesis.disturb_path("blackhole", "broker", 0.1, replica)
        nemesis.disturb_path("refuse", "lease", 0.1, replica)
    for proxy in scenario.lease_proxies:
        proxy.refuse()
    time.sleep(0.3)
    before = len(scenario.history.messages())
    time.sleep(0.7)
    assert len(scenario.history.messages()) == before
    nemesis.redis_stop()
    assert not scenario.redis.alive
    nemesis.heal()
    scenario.more(3)
    assert [replica.starts for replica in scenario.cluster] == [1, 1]


@pytest.mark.slow
def test_clock_of_one_replica_jumps_alone(scenario: ClusterScenario):
    scenario.nemesis.clock_jump(-3600, scenario.cluster[0])
    assert [clock.offset for clock in scenario.clocks] == [-3600, 0]
    scenario.more(3)
    scenario.nemesis.heal()
    assert [clock.offset for clock in scenario.clocks] == [0, 0]


def test_storm_is_repeated_by_its_seed_and_keeps_its_bounds():
    names = tuple(FAULTS)
    assert Storm(3, 60).plan(names) == Storm(3, 60).plan(names)
    assert Storm(3, 60).plan(names) != Storm(4, 60).plan(names)
    for step in Storm(5, 600).plan(names):
        assert FAULTS[step.fault].shortest <= step.seconds <= FAULTS[step.fault].longest


def test_storm_draws_only_faults_that_the_run_has_parts_for(shared_redis: RedisServer):
    options = {"replicas": 1, "proxied": False, "scheduler": STOCK_SCHEDULER, "spec": SPEC}
    with ClusterScenario(redis=shared_redis, **options) as scenario:
        possible = Storm.possible(scenario.nemesis)
        assert "kill_leader" in possible
        assert "redis_stop" not in possible  # it would lose everything
        assert not {name for name in possible if "path" in name or "broker" in name}
        with pytest.raises(RuntimeError, match="no lease proxy"):
            scenario.nemesis.cut_path("lease")
