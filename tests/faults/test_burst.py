"""Leader that is paused, killed or asked to stop while it enqueues 1,000 entries with the same due instant.

Each entry is enqueued exactly once, by this leader or by the next.

    BURST=10000 pytest --full tests/faults/test_burst.py     takes about five minutes
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from ha_beat.reasons import RequestKind
from ha_beat.store.keys import Keys
from ha_beat.store.request_queue import Request, Requests
from tests.faults.cluster import Replica
from tests.faults.proxy import HeldRequest, containing
from tests.faults.scenario import ClusterScenario, due_times
from tests.support.servers import wait_for

COUNT = int(os.environ.get("BURST", "1000"))
MIDDLE, LATER = (f"burst-{COUNT * tenths // 10:04d}".encode() for tenths in (5, 9))
LEAD_TIMES = (8.0 + COUNT / 1000, 30.0 + COUNT / 250)


@pytest.fixture
def scenario() -> Iterator[ClusterScenario]:
    """Start three replicas whose entries have one due instant, some seconds from now."""
    for due_at in due_times(*LEAD_TIMES):
        burst = {"every": 3600, "first": due_at, "n": COUNT}
        with ClusterScenario(spec={"fast": {"every": 0.2}, "burst": burst}, settings={"lease_ttl": 2}) as made:
            made.begin()
            wait_until_armed(made)
            if time.time() < due_at - 1:
                yield made
                return


def wait_until_armed(scenario: ClusterScenario) -> None:
    """Wait until the burst's entries are armed. The records of that are no records of the burst."""
    fields = [b"e:" + MIDDLE, b"e:" + LATER]
    ledger, admin = scenario.cluster.key("ledger"), scenario.redis.admin
    wait_for(lambda: None not in admin.hmget(ledger, fields), LEAD_TIMES[-1], "the entries to be armed", 0.1)


def hold_in_mid_burst(scenario: ClusterScenario, leader: Replica) -> HeldRequest:
    """Hold back the batch with the middle entry of the burst on its way to the server."""
    held = scenario.nemesis.lease_proxy(leader).hold(containing(b"EVALSHA", MIDDLE, b'"verdict":"enqueued"'))
    held.wait(LEAD_TIMES[-1] + 20)
    time.sleep(0.1)  # the proxy may not have read the rest of the request yet
    assert 0 < sent(scenario) < COUNT
    return held


def sent(scenario: ClusterScenario) -> int:
    return sum(str(message["entry"]).startswith("burst") for message in scenario.history.messages())


def post(scenario: ClusterScenario, kind: RequestKind) -> None:
    """Send a request to the leader, past the proxies. The leader answers between two batches."""
    cluster = scenario.cluster
    requests = Requests(lambda: cluster.admin, Keys(cluster.name), 1000)
    requests.post(Request(kind, {}, by="test"), lifetime=30.0)
    # Prepared batches follow one another within milliseconds. The command that is held back must not time out.
    time.sleep(0.25)


def wait_for_burst(scenario: ClusterScenario) -> None:
    wait_for(lambda: sent(scenario) >= COUNT, 60 + COUNT / 100, "the rest of the burst")


def assert_each_once(scenario: ClusterScenario, leaders: int = 2) -> None:
    """Assert that each entry of the burst has one message, from this many leaders, and that the report is clean."""
    messages = [m for m in scenario.history.messages() if str(m["entry"]).startswith("burst")]
    counts = Counter(str(m["entry"]) for m in messages)
    assert len(counts) == COUNT
    assert set(counts.values()) == {1}
    assert len({m["epoch"] for m in messages}) >= leaders, "the burst was not interrupted"
    scenario.clean_report()


@pytest.mark.slow
def test_leader_paused_in_a_burst_is_refused_and_can_lead_again(scenario: ClusterScenario):
    """The batch in flight arrives after the takeover and is refused. The resumed replica can lead again later."""
    leader = scenario.cluster.wait_for_leader()
    held = hold_in_mid_burst(scenario, leader)
    leader.pause()
    scenario.cluster.wait_for_leader(other_than=leader)
    wait_for_burst(scenario)
    before = sent(scenario)
    held.release()
    time.sleep(0.3)
    leader.resume()
    leader.wait_for_log("action=term_ended")
    scenario.more(5)
    assert sent(scenario) == before
    assert_each_once(scenario)
    scenario.cluster.assert_all_alive()
    assert leader.starts == 1

    for other in scenario.cluster:
        if other is not leader:
            other.terminate()
    wait_for(lambda: scenario.cluster.leader() is leader, 20, "the resumed replica to lead")
    scenario.more(5)


@pytest.mark.slow
def test_leader_killed_in_a_burst_leaves_the_rest_to_the_next(scenario: ClusterScenario):
    """The batch in flight arrives after the next leader has enqueued everything, and is refused."""
    leader = scenario.cluster.wait_for_leader()
    held = hold_in_mid_burst(scenario, leader)
    leader.kill()
    scenario.nemesis.lease_proxy(leader).cut()  # its presence ends; its batch is still in flight
    scenario.cluster.wait_for_leader(other_than=leader)
    wait_for_burst(scenario)
    held.release()
    scenario.more(5)
    assert_each_once(scenario)


@pytest.mark.slow
def test_batch_that_arrives_just_before_the_takeover_counts(scenario: ClusterScenario):
    """The batch in flight arrives after the leader's death and is enqueued. The next leader continues after it."""
    leader = scenario.cluster.wait_for_leader()
    held = hold_in_mid_burst(scenario, leader)
    before = sent(scenario)
    leader.kill()
    held.release()
    wait_for(lambda: sent(scenario) > before, 10, "the batch that outlived its sender")
    scenario.cluster.wait_for_leader(other_than=leader)
    wait_for_burst(scenario)
    scenario.more(5)
    assert_each_once(scenario)


@pytest.mark.slow
def test_step_down_in_a_burst_leaves_the_rest_to_the_next(scenario: ClusterScenario):
    """Occurrences that the first leader has prepared belong to its term: a later batch with them is refused."""
    leader = scenario.cluster.wait_for_leader()
    held = hold_in_mid_burst(scenario, leader)
    later = scenario.nemesis.lease_proxy(leader).hold(containing(b"EVALSHA", LATER, b'"verdict":"enqueued"'))
    post(scenario, RequestKind.STEP_DOWN)
    held.release()
    scenario.cluster.wait_for_leader(other_than=leader)
    later.release()
    wait_for_burst(scenario)
    scenario.more(5)
    assert_each_once(scenario)


@pytest.mark.slow
def test_pause_in_a_burst_is_honoured_and_the_rest_follows(scenario: ClusterScenario):
    leader = scenario.cluster.wait_for_leader()
    held = hold_in_mid_burst(scenario, leader)
    post(scenario, RequestKind.PAUSE)
    held.release()
    leader.wait_for_log("action=paused")
    cluster = scenario.cluster

    def arrived() -> bool:
        enqueued = sum(record.get("verdict") == "enqueued" for record in cluster.journal())
        return enqueued == len(scenario.history.messages())

    time.sleep(0.5)  # the batch that was held back is enqueued
    wait_for(arrived, what="every message that was enqueued")
    before = len(scenario.history.messages())
    time.sleep(1.5)
    assert len(scenario.history.messages()) == before
    assert sent(scenario) < COUNT
    post(scenario, RequestKind.RESUME)
    wait_for_burst(scenario)
    scenario.more(5)
    assert_each_once(scenario, leaders=1)
