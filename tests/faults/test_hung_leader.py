"""The leader's main loop hangs while its other threads run. It releases the lease, another replica leads, and writes
of the old leader are refused when it wakes up.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.checker import Interval
from tests.faults.cluster import Replica
from tests.faults.scenario import ClusterScenario
from tests.support.servers import wait_for

STALL = 2.0
SPEC = {"fast": {"every": 0.2}, "sleeper": {"every": 0.5, "kwargs": {"asleep": "lazy"}}}


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    """Return a file; while it names a replica, that replica's next call of the lazy argument sleeps."""
    return tmp_path / "sleeps"


@pytest.fixture
def scenario(switch: Path) -> Iterator[ClusterScenario]:
    # The lease lasts much longer than the hang, so it must be released rather than lost.
    settings = {"lease_ttl": 30, "renew_interval": 1, "stall_timeout": STALL}
    with ClusterScenario(
        spec=SPEC, settings=settings, app="tests.support.apps.sleeping_app", env={"SLEEPS": str(switch)}, proxied=False
    ) as made:
        yield made


def hang(scenario: ClusterScenario, switch: Path) -> Replica:
    """Put the leader to sleep inside an entry's argument. Return it once it sleeps."""
    leader = scenario.begin()
    scenario.history.wait_for_messages(1, 20, "sleeper")
    switch.write_text(leader.name)
    wait_for(lambda: "asleep" in leader.log_text(), 20, "the leader to fall asleep")
    scenario.history.fault("hang", replica=leader.name)
    return leader


@pytest.mark.slow
def test_hung_leader_releases_the_lease(scenario: ClusterScenario, switch: Path, found):
    """Another replica leads after the stall timeout rather than the lease. The hung process enqueues nothing when it
    wakes up and becomes a standby.
    """
    hung = hang(scenario, switch)
    began = time.monotonic()
    successor = scenario.cluster.wait_for_leader(other_than=hung, timeout=25)
    took = time.monotonic() - began
    epoch = scenario.cluster.epoch()
    assert successor is not hung
    assert took < STALL + 6  # the lease had 30 s left; the aim is 0.5 s
    scenario.more(10, "fast", 10)
    switch.unlink()
    hung.wait_for_log("awake")
    scenario.more(10, "fast", 10)
    assert scenario.cluster.epoch() == epoch
    assert "reason=stalled" in hung.log_text()
    scenario.cluster.assert_all_alive()
    report = scenario.clean_report([Interval("fast", 0.2), Interval("sleeper", 0.5)])
    found(f"let go {took:.2f} s after it hung (stall_timeout {STALL:g} s)")
    found(report)


@pytest.mark.slow
def test_leader_that_hung_can_lead_again(scenario: ClusterScenario, switch: Path):
    """Awake and alone, it takes the lease again and continues from the others' position."""
    hung = hang(scenario, switch)
    scenario.cluster.wait_for_leader(other_than=hung, timeout=25)
    switch.unlink()
    hung.wait_for_log("awake")
    for other in scenario.cluster:
        if other is not hung:
            other.terminate()
    wait_for(lambda: scenario.cluster.leader() is hung, 45, "the hung one to lead")
    scenario.more(5, "fast")
    scenario.clean_report([Interval("fast", 0.2), Interval("sleeper", 0.5)])
