"""The server acts, and its answer is lost: the retry finds that it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.checker import Interval
from tests.faults.proxy import containing
from tests.faults.stage import Stage

SPEC = {"fast": {"every": 0.5}}

ENQUEUES = containing(b"EVALSHA", b'"verdict":"enqueued"')


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage(spec=SPEC, replicas=2) as made:
        made.begin()
        yield made


def test_a_lost_reply_to_a_dispatch_leaves_one_message(stage: Stage) -> None:
    """One message, recorded as enqueued, the same leader goes on, and its log says what happened."""
    leader = stage.cluster.wait_for_leader()
    epoch = stage.cluster.epoch()
    before = len(stage.history.messages())
    cut = stage.nemesis.lease_proxy(leader).cut_reply_after(ENQUEUES)
    cut.wait()
    stage.history.wait_for_messages(before + 4)
    leader.wait_for_log("already_mine=1")
    report = stage.report([Interval("fast", 0.5)])
    assert report.ok, str(report)
    enqueued = [record for record in stage.cluster.journal() if record.get("verdict") == "enqueued"]
    assert set(Counter(record["at"] for record in enqueued).values()) == {1}
    recorded = {record["id"] for record in enqueued}
    assert {message["id"] for message in stage.history.messages()} <= recorded
    assert stage.cluster.ledger()["fast"]["verdict"] == "enqueued"
    assert stage.cluster.epoch() == epoch


def test_a_reply_lost_by_a_leader_that_dies_of_it_is_no_second_message(stage: Stage) -> None:
    """The leader never learns that its batch was done; the next one reads it in the ledger."""
    leader = stage.cluster.wait_for_leader()
    proxy = stage.nemesis.lease_proxy(leader)
    cut = proxy.cut_reply_after(ENQUEUES)
    cut.wait()
    leader.kill()
    stage.cluster.wait_for_leader(other_than=leader)
    stage.history.wait_for_messages(len(stage.history.messages()) + 4)
    report = stage.report([Interval("fast", 0.5)])
    assert report.ok, str(report)
