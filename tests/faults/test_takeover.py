"""The leader is killed, stopped or paused past its lease, again and again.

Another replica leads, and every occurrence is enqueued once or has a verdict.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.checker import EveryMinute, Interval, Silence, run_count_breaks
from tests.faults.cluster import Replica
from tests.faults.scenario import ClusterScenario

EVERY = 0.2
SPEC = {"fast": {"every": EVERY}, "minute": {"cron": "*"}}

# The quick number and the full one.
TIMES = [
    pytest.param(1, id="once"),
    pytest.param(20, id="20-times", marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
]


def run_changes(
    times: int, ttl: float, fault: str, change: Callable[[ClusterScenario, Replica], None]
) -> tuple[Silence, str]:
    """Cause `times` changes of leader at random phases of the interval, and check the history against the schedule.

    Return the silence around the fault, and its figures.
    """
    chance = random.Random(times)
    with ClusterScenario(spec=SPEC, proxied=False, settings={"lease_ttl": ttl}) as scenario:
        scenario.begin()
        began = datetime.now(UTC)
        for _ in range(times):
            leader = scenario.cluster.wait_for_leader()
            scenario.cluster.wait_for_presence()
            scenario.more(1, "fast")
            time.sleep(chance.uniform(0, EVERY))
            change(scenario, leader)
            scenario.more(2, "fast")
        scenario.cluster.assert_all_alive()
        ended = datetime.now(UTC)
        scenario.more(5, "fast")
        minutes = EveryMinute("minute", began, ended - timedelta(seconds=1))
        report = scenario.clean_report([Interval("fast", EVERY, until=ended), minutes])
        assert run_count_breaks(scenario.history.messages()) == []
    assert report.faults == {fault: times}
    assert report.changes_of_epoch >= times, str(report)
    silence = report.silence_by_fault[fault]
    assert silence.gaps == times
    return silence, f"{times} x {fault} with a lease of {ttl:g} s: silence {silence}, of which {EVERY:g} s are due"


@pytest.mark.parametrize("times", TIMES)
def test_killed_leader_is_replaced_long_before_its_lease_ends(times: int, figure):
    """Presence reports the death to the standbys, so the silence is a fraction of the lease."""

    def kill(scenario: ClusterScenario, leader: Replica) -> None:
        scenario.nemesis.kill_leader()
        scenario.cluster.wait_for_leader(other_than=leader)
        leader.start().wait_for_log_of_start()

    silence, figures = run_changes(times, 30, "kill_leader", kill)
    figure(f"{figures}; the aim is 0.15 s in the median, 0.5 s at most")
    assert silence.longest < 15  # half of the lease: a generous bound that still excludes waiting for it


@pytest.mark.slow
def test_only_replica_leads_again_before_its_old_lease_ends():
    with ClusterScenario(spec=SPEC, proxied=False, replicas=1, settings={"lease_ttl": 300}) as scenario:
        leader = scenario.begin()
        scenario.cluster.wait_for_presence()
        scenario.nemesis.kill_leader(down=0)
        assert scenario.cluster.wait_for_leader() is leader
        leader.wait_for_log("reason=leader_gone")
        scenario.more(3, "fast")
        scenario.clean_report(scenario.intervals)


@pytest.mark.slow
@pytest.mark.parametrize("times", TIMES)
def test_stopped_leader_hands_over(times: int, figure):
    """It releases the lease, wakes the standbys and exits with 0."""

    def terminate(scenario: ClusterScenario, leader: Replica) -> None:
        assert scenario.nemesis.term_leader() is leader
        assert leader.exit_code == 0
        scenario.cluster.wait_for_leader(other_than=leader)
        leader.start().wait_for_log_of_start()

    silence, figures = run_changes(times, 30, "term_leader", terminate)
    figure(f"{figures}; the aim is 0.05 s in the median, 0.5 s at most")
    assert silence.longest < 15


@pytest.mark.slow
@pytest.mark.parametrize("times", [TIMES[0], pytest.param(10, id="10-times", marks=pytest.mark.slow)])
def test_leader_paused_past_its_lease_becomes_a_standby(times: int, figure):
    """Its connections stay open, so the lease has to expire. The resumed process keeps running and enqueues nothing."""
    ttl = 2.0

    def pause(scenario: ClusterScenario, leader: Replica) -> None:
        lines = leader.log_text().count("action=term_ended")
        scenario.nemesis.pause_leader(ttl * 1.5)
        scenario.cluster.wait_for_leader(other_than=leader)
        leader.wait_for_log("action=term_ended", count=lines + 1)
        assert [replica.starts for replica in scenario.cluster] == [1, 1, 1]

    silence, figures = run_changes(times, ttl, "pause_leader", pause)
    figure(f"{figures}; the aim is {ttl:g} s in the median, {ttl + 0.5:g} s at most")
    assert silence.longest >= ttl - ttl / 4  # sooner would be a takeover from a live process
