"""The network between replicas, Redis and the broker is cut, silent or slow, or delivers a command too late."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RedisServer, need, wait_for

pytestmark = pytest.mark.slow

TTL = 2.0
SETTINGS = {"lease_ttl": TTL, "renew_interval": 0.5, "command_timeout": 0.9}
SPEC = {"fast": {"every": 0.2}}


@pytest.fixture
def scenario() -> Iterator[ClusterScenario]:
    with ClusterScenario(spec=SPEC, settings=SETTINGS) as made:
        made.begin()
        made.more(10, "fast")
        yield made


@pytest.mark.parametrize("how", ["blackhole", "refuse", "stall"])
def test_leader_cut_from_redis_stops_by_itself(scenario: ClusterScenario, how: str, found):
    """Its trust ends before its lease. Reconnected, it becomes a standby."""
    leader = scenario.cluster.wait_for_leader()
    scenario.nemesis.disturb_path(how, "lease", TTL * 2, leader)
    scenario.more(10, "fast")
    leader.wait_for_log("action=term_ended")
    assert scenario.cluster.leader() is not leader
    found(scenario.judge())


def test_command_held_back_past_the_lease_is_refused(scenario: ClusterScenario, found):
    """A batch in flight for longer than the lease arrives under another leader and changes nothing."""
    leader = scenario.cluster.wait_for_leader()
    proxy = scenario.nemesis.lease_proxy(leader)
    held = proxy.hold(containing(b"EVALSHA", b'"verdict":"enqueued"'))
    held.wait(20)
    scenario.history.fault("held_command", replica=leader.name)
    leader.pause()
    successor = scenario.cluster.wait_for_leader(other_than=leader)
    scenario.more(10, "fast")
    before = scenario.cluster.ledger()["fast"]["epoch"]
    held.release()
    time.sleep(0.5)
    leader.resume()
    scenario.more(10, "fast")
    assert scenario.cluster.leader() is successor
    assert scenario.cluster.ledger()["fast"]["epoch"] == before
    found(scenario.judge())


@contextmanager
def slow_redis(scenario: ClusterScenario, seconds: float) -> Iterator[None]:
    """Delay each direction by some seconds."""
    with scenario.nemesis.during("slow_redis"):
        for proxy in scenario.lease_proxies:
            proxy.delay(seconds)
        yield
        for proxy in scenario.lease_proxies:
            proxy.heal()


def test_redis_slower_than_the_lease_changes_leaders_rarely(scenario: ClusterScenario, found):
    """Every reply takes longer than the lease: at most one change of leader per ttl, and recovery afterwards."""
    epochs = set()
    with slow_redis(scenario, TTL * 0.6):
        until = time.monotonic() + TTL * 8
        while time.monotonic() < until:
            epochs.add(scenario.cluster.epoch())
            time.sleep(0.05)
    scenario.more(10, "fast")
    assert len(epochs) <= 8 + 2, epochs
    found(f"{len(epochs) - 1} changes in {TTL * 8:g} s, lease {TTL:g} s")
    found(scenario.judge())


def test_replies_slower_than_usual_keep_the_leader(scenario: ClusterScenario, found):
    epoch = scenario.cluster.epoch()
    with slow_redis(scenario, TTL / 20):
        time.sleep(TTL * 4)
    scenario.more(10, "fast")
    assert scenario.cluster.epoch() == epoch
    found(scenario.judge())


def test_leader_that_cannot_reach_the_broker_hands_over(found):
    with need(RedisServer) as broker, ClusterScenario(broker=broker, spec=SPEC, settings=SETTINGS) as scenario:
        leader = scenario.begin()
        scenario.more(10, "fast")
        proxy = scenario.nemesis.broker_proxy(leader)
        with scenario.nemesis.during("refuse_broker_path", replica=leader.name):
            proxy.refuse()
            scenario.cluster.wait_for_leader(other_than=leader, timeout=40)
            scenario.more(10, "fast")
            proxy.heal()
        assert "reason=broker_unreachable" in leader.log_text()
        found(scenario.judge())


def test_one_way_silence_loses_no_occurrence(scenario: ClusterScenario, found):
    """Commands arrive and replies do not, then the reverse. Each outcome is unknown; none is duplicated or lost."""
    for direction in ("reply", "request"):
        proxy = scenario.nemesis.lease_proxy(scenario.cluster.wait_for_leader())
        with scenario.nemesis.during("one_way", direction=direction):
            proxy.blackhole(direction)
            time.sleep(TTL * 1.5)
            proxy.heal()
        scenario.more(10, "fast")
    wait_for(lambda: scenario.cluster.leader() is not None, 10, "a leader")
    found(scenario.judge())
