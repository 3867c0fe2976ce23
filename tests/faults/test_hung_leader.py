"""The leader's main loop hangs while its other threads run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import Replica
from tests.faults.scenario import ClusterScenario
from tests.support.servers import wait_for

STALL = 2.0
SPEC: dict[str, Any] = {"fast": {"every": 0.2}, "hanging": {"every": 0.5, "kwargs": {"hangs": True}}}


@pytest.fixture
def hang(tmp_path: Path) -> Path:
    """Return a file; the replica that it names hangs in its next computed argument."""
    return tmp_path / "hang"


@pytest.fixture
def scenario(hang: Path) -> Iterator[ClusterScenario]:
    # The lease lasts much longer than the hang, so it must be released rather than lost.
    settings = {"lease_ttl": 30, "renew_interval": 1, "stall_timeout": STALL}
    app, env = "tests.support.apps.lazy_app", {"HANG_FILE": str(hang)}
    with ClusterScenario(spec=SPEC, settings=settings, app=app, env=env, proxied=False) as made:
        yield made


def hang_leader(scenario: ClusterScenario, hang: Path) -> Replica:
    """Hold the leader inside an entry's argument. Return it once it hangs."""
    leader = scenario.begin()
    scenario.history.wait_for_messages(1, 20, "hanging")
    hang.write_text(leader.name)
    leader.wait_for_log("asleep")
    scenario.history.fault("hang", replica=leader.name)
    return leader


@pytest.mark.slow
def test_hung_leader_releases_the_lease(scenario: ClusterScenario, hang: Path, found):
    """Another replica leads after the stall timeout, long before the lease ends.

    When the hung process wakes up, it enqueues nothing and becomes a standby.
    """
    hung = hang_leader(scenario, hang)
    began = time.monotonic()
    scenario.cluster.wait_for_leader(other_than=hung, timeout=25)
    took = time.monotonic() - began
    epoch = scenario.cluster.epoch()
    assert took < STALL + 6  # the lease had 30 s left; the aim is 0.5 s
    scenario.more(10, "fast", 10)
    hang.unlink()
    hung.wait_for_log("awake")
    scenario.more(10, "fast", 10)
    assert scenario.cluster.epoch() == epoch
    assert "reason=stalled" in hung.log_text()
    found(f"released {took:.2f} s after the hang (stall_timeout {STALL:g} s)")
    found(scenario.judge())


@pytest.mark.slow
def test_leader_that_hung_can_lead_again(scenario: ClusterScenario, hang: Path):
    """Awake and alone, it takes the lease again and continues from the others' position."""
    hung = hang_leader(scenario, hang)
    scenario.cluster.wait_for_leader(other_than=hung, timeout=25)
    hang.unlink()
    hung.wait_for_log("awake")
    for other in scenario.cluster:
        if other is not hung:
            other.terminate()
    wait_for(lambda: scenario.cluster.leader() is hung, 45, "the hung replica to lead")
    scenario.more(5, "fast")
    scenario.clean_report(scenario.intervals)
