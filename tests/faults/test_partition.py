"""The network between replicas, Redis and the broker is cut, silent, slow, or delivers a command after the lease has
changed hands.
"""

import time
from collections.abc import Iterator

import pytest

from tests.faults.checker import Interval
from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RedisServer, need, wait_for

TTL = 2.0
SETTINGS = {"lease_ttl": TTL, "renew_interval": 0.5, "command_timeout": 0.9}
SPEC = {"fast": {"every": 0.2}}
EXPECTED = [Interval("fast", 0.2)]


@pytest.fixture
def scenario() -> Iterator[ClusterScenario]:
    with ClusterScenario(spec=SPEC, settings=SETTINGS) as made:
        yield made


def judge(scenario: ClusterScenario, found) -> None:
    scenario.cluster.assert_all_alive()
    found(scenario.clean_report(EXPECTED))


CUTS = [
    pytest.param("blackhole_lease_path", id="silent"),
    pytest.param("refuse_lease_path", id="refused", marks=pytest.mark.slow),
    pytest.param("stall_lease_path", id="held-back", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_leader_cut_from_redis_stops_by_itself(scenario: ClusterScenario, cut: str, found):
    """Its trust ends before its lease. Reconnected, it becomes a standby."""
    leader = scenario.begin()
    scenario.more(10, "fast")
    getattr(scenario.nemesis, cut)(TTL * 2, leader)
    scenario.more(10, "fast")
    leader.wait_for_log("action=term_ended")
    assert scenario.cluster.leader() is not leader
    judge(scenario, found)


@pytest.mark.slow
def test_command_held_back_past_the_lease_is_refused(scenario: ClusterScenario, found):
    """A batch in flight for longer than the lease arrives under another leader and changes nothing."""
    leader = scenario.begin()
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
    judge(scenario, found)


@pytest.mark.slow
def test_redis_slower_than_the_lease_changes_leaders_rarely(scenario: ClusterScenario, found):
    """Every reply takes longer than the lease: at most one change of leader per ttl, and recovery afterwards."""
    scenario.begin()
    scenario.more(10, "fast")
    epochs = set()
    began = time.monotonic()
    for proxy in scenario.lease_proxies:
        proxy.delay(TTL * 0.6)
    scenario.history.fault("slow_redis", "start")
    while time.monotonic() - began < TTL * 8:
        epochs.add(scenario.cluster.epoch())
        time.sleep(0.05)
    for proxy in scenario.lease_proxies:
        proxy.heal()
    scenario.history.fault("slow_redis", "end")
    scenario.more(10, "fast")
    assert len(epochs) <= 8 + 2, epochs
    found(f"{len(epochs) - 1} changes in {TTL * 8:g} s, lease {TTL:g} s")
    judge(scenario, found)


@pytest.mark.slow
def test_replies_slower_than_usual_keep_the_leader(scenario: ClusterScenario, found):
    scenario.begin()
    scenario.more(10, "fast")
    epoch = scenario.cluster.epoch()
    for proxy in scenario.lease_proxies:
        proxy.delay(TTL / 20)
    time.sleep(TTL * 4)
    for proxy in scenario.lease_proxies:
        proxy.heal()
    scenario.more(10, "fast")
    assert scenario.cluster.epoch() == epoch
    judge(scenario, found)


@pytest.mark.slow
def test_leader_that_cannot_reach_the_broker_hands_over(found):
    with need(RedisServer) as broker, ClusterScenario(broker=broker, spec=SPEC, settings=SETTINGS) as scenario:
        leader = scenario.begin()
        scenario.more(10, "fast")
        proxy = scenario.nemesis.broker_proxy(leader)
        scenario.history.fault("refuse_broker_path", "start", replica=leader.name)
        proxy.refuse()
        successor = scenario.cluster.wait_for_leader(other_than=leader, timeout=40)
        assert successor is not leader
        scenario.more(10, "fast")
        proxy.heal()
        scenario.history.fault("refuse_broker_path", "end", replica=leader.name)
        assert "reason=broker_unreachable" in leader.log_text()
        judge(scenario, found)


@pytest.mark.slow
def test_one_way_silence_loses_no_occurrence(scenario: ClusterScenario, found):
    """Commands arrive and replies do not, then the reverse. Each outcome is unknown; none is duplicated or lost."""
    leader = scenario.begin()
    scenario.more(10, "fast")
    for direction in ("reply", "request"):
        leader = scenario.cluster.wait_for_leader()
        proxy = scenario.nemesis.lease_proxy(leader)
        scenario.history.fault("one_way", "start", direction=direction)
        proxy.blackhole(direction)
        time.sleep(TTL * 1.5)
        proxy.heal()
        scenario.history.fault("one_way", "end", direction=direction)
        scenario.more(10, "fast")
    wait_for(lambda: scenario.cluster.leader() is not None, 10, "a leader")
    judge(scenario, found)
