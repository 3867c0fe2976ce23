"""Entries that take long to build. The leader keeps its lease, and the other entries run."""

import time
from itertools import pairwise
from typing import Any

import pytest

from tests.faults.scenario import ClusterScenario

SETTINGS = {"lease_ttl": 30, "renew_interval": 1, "stall_timeout": 2.0}


def slow_scenario(spec: dict[str, dict[str, Any]]) -> ClusterScenario:
    return ClusterScenario(spec=spec, settings=SETTINGS, app="tests.support.apps.lazy_app", proxied=False)


@pytest.mark.slow
def test_slow_entries_due_together_are_sent_under_one_leader(found):
    """Together, they take three times the stall timeout to build."""
    first = time.time() + 10.0
    slow = {"every": 3600, "first": first, "n": 30, "kwargs": {"slow": 0.2}}
    with slow_scenario({"quick": {"every": 1.0}, "slow": slow}) as scenario:
        scenario.begin()
        epoch = scenario.cluster.epoch()
        for number in range(30):
            scenario.history.wait_for_messages(1, 60, f"slow-{number:04d}")
        scenario.more(2, "quick")
        arrived = [message["t"] for message in scenario.history.messages("quick")]
        assert max(after - before for before, after in pairwise(arrived)) < 5.0
        assert scenario.cluster.epoch() == epoch
        found(scenario.clean_report(scenario.intervals))


@pytest.mark.slow
def test_entry_slower_than_the_stall_timeout_is_sent(found):
    """Each replica loses the lease once at most. Then a thread computes the entry's argument."""
    with slow_scenario({"quick": {"every": 0.5}, "blocking": {"every": 6.0, "kwargs": {"slow": 3.0}}}) as scenario:
        scenario.begin()
        scenario.history.wait_for_messages(1, 60, "blocking")
        epoch = scenario.cluster.epoch()
        scenario.more(3, "blocking", 60)
        assert scenario.cluster.epoch() == epoch
        found(scenario.clean_report(scenario.intervals))
