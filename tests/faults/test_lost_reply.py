"""The reply to a dispatch is lost after the server has acted. The retry finds the result."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.checker import run_count_breaks
from tests.faults.cluster import Replica
from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario

ENQUEUES = containing(b"EVALSHA", b'"verdict":"enqueued"')


pytestmark = pytest.mark.slow


@pytest.fixture
def scenario() -> Iterator[ClusterScenario]:
    with ClusterScenario(spec={"fast": {"every": 0.5}}, replicas=2) as made:
        made.begin()
        yield made


def lose_reply_to_a_dispatch(scenario: ClusterScenario) -> Replica:
    """Return the leader that never receives the result of a batch."""
    leader = scenario.cluster.wait_for_leader()
    scenario.nemesis.lease_proxy(leader).cut_reply_after(ENQUEUES).wait()
    return leader


def test_lost_reply_to_a_dispatch_leaves_one_message(scenario: ClusterScenario):
    """There is one message, recorded as enqueued; the same leader continues and logs the lost reply."""
    epoch = scenario.cluster.epoch()
    before = len(scenario.history.messages())
    leader = lose_reply_to_a_dispatch(scenario)
    scenario.history.wait_for_messages(before + 4)
    leader.wait_for_log("already_mine=1")
    assert re.search(r"action=batch_dispatched size=1 \S+ already_mine=1\b", leader.log_text())
    scenario.clean_report(scenario.intervals)
    assert run_count_breaks(scenario.history.messages()) == []
    enqueued = [record for record in scenario.cluster.journal() if record.get("verdict") == "enqueued"]
    assert set(Counter(record["at"] for record in enqueued).values()) == {1}
    recorded = {record["id"] for record in enqueued}
    assert {message["id"] for message in scenario.history.messages()} <= recorded
    assert scenario.cluster.ledger()["fast"]["verdict"] == "enqueued"
    assert scenario.cluster.epoch() == epoch


def test_leader_that_dies_after_a_lost_reply_leaves_one_message(scenario: ClusterScenario):
    """The next leader reads the result of the batch in the ledger."""
    leader = lose_reply_to_a_dispatch(scenario)
    leader.kill()
    scenario.cluster.wait_for_leader(other_than=leader)
    scenario.more(4)
    scenario.clean_report(scenario.intervals)
    assert run_count_breaks(scenario.history.messages()) == []
