"""The server acts and its reply is lost: the retry finds that it was done."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.checker import Interval
from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario

SPEC = {"fast": {"every": 0.5}}

ENQUEUES = containing(b"EVALSHA", b'"verdict":"enqueued"')


@pytest.fixture
def scenario() -> Iterator[ClusterScenario]:
    with ClusterScenario(spec=SPEC, replicas=2) as made:
        made.begin()
        yield made


def test_a_lost_reply_to_a_dispatch_leaves_one_message(scenario: ClusterScenario) -> None:
    """There is one message, recorded as enqueued; the same leader continues and logs the lost reply."""
    leader = scenario.cluster.wait_for_leader()
    epoch = scenario.cluster.epoch()
    before = len(scenario.history.messages())
    cut = scenario.nemesis.lease_proxy(leader).cut_reply_after(ENQUEUES)
    cut.wait()
    scenario.history.wait_for_messages(before + 4)
    leader.wait_for_log("already_mine=1")
    assert re.search(r"action=batch_dispatched size=1 \S+ already_mine=1\b", leader.log_text())
    report = scenario.report([Interval("fast", 0.5)])
    assert report.ok, str(report)
    enqueued = [record for record in scenario.cluster.journal() if record.get("verdict") == "enqueued"]
    assert set(Counter(record["at"] for record in enqueued).values()) == {1}
    recorded = {record["id"] for record in enqueued}
    assert {message["id"] for message in scenario.history.messages()} <= recorded
    assert scenario.cluster.ledger()["fast"]["verdict"] == "enqueued"
    assert scenario.cluster.epoch() == epoch


@pytest.mark.slow
def test_a_reply_lost_by_a_leader_that_dies_of_it_is_no_second_message(scenario: ClusterScenario) -> None:
    """The leader never receives the result of its batch; the next leader reads it in the ledger."""
    leader = scenario.cluster.wait_for_leader()
    proxy = scenario.nemesis.lease_proxy(leader)
    cut = proxy.cut_reply_after(ENQUEUES)
    cut.wait()
    leader.kill()
    scenario.cluster.wait_for_leader(other_than=leader)
    scenario.history.wait_for_messages(len(scenario.history.messages()) + 4)
    report = scenario.report([Interval("fast", 0.5)])
    assert report.ok, str(report)
