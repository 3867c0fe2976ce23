"""Requests to the leader, on real beats and a real Redis."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest

from ha_beat.clock import SystemClock, to_micros
from ha_beat.reasons import BackfillOutcome, ReplyCode, RequestKind
from ha_beat.store.keys import Keys
from ha_beat.store.request_queue import Reply, Request, Requests
from tests.faults.cluster import BeatCluster
from tests.support.servers import RedisServer, need, wait_for

SPEC = {"fast": {"every": 0.5}, "rare": {"every": 86400}}

_numbers = count()


def started(server: RedisServer) -> BeatCluster:
    settings = {"lease_ttl": 3, "poll_interval": 0.05}
    beats = BeatCluster(server.url, spec=SPEC, replicas=2, settings=settings)
    with ExitStack() as stack:
        stack.enter_context(beats)
        beats.wait_until_up()
        beats.wait_for_leader()
        wait_for(lambda: "fast" in beats.ledger(), what="the schedule in the ledger")
        stack.pop_all()
    return beats


@pytest.fixture
def cluster(redis_server: RedisServer) -> Iterator[BeatCluster]:
    with closing(started(redis_server)) as beats:
        yield beats


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[BeatCluster]:
    with need(RedisServer) as server, closing(started(server)) as beats:
        yield beats


@pytest.fixture
def shared_cluster(module_cluster: BeatCluster) -> BeatCluster:
    """Return a cluster that several tests share, with all replicas running and an empty queue."""
    module_cluster.heal()
    module_cluster.wait_for_leader()
    module_cluster.admin.delete("celery")
    return module_cluster


def requests_of(cluster: BeatCluster) -> Requests:
    return Requests(lambda: cluster.admin, Keys(cluster.name))


def ask(cluster: BeatCluster, kind: RequestKind, **args: Any) -> Reply:
    return requests_of(cluster).ask(Request(kind, args, by="tester"), SystemClock(), timeout=20)


def sent(cluster: BeatCluster, entry: str) -> list[dict[str, Any]]:
    """Return the headers of the entry's messages in the queue, in order."""
    headers = [json.loads(item)["headers"] for item in reversed(cluster.admin.lrange("celery", 0, -1))]
    return [found for found in headers if found["ha_beat"]["entry"] == entry]


def three_days(entry: str) -> dict[str, Any]:
    """Return the arguments of a backfill that no journal knows, nor an earlier run of the test."""
    since = datetime.fromisoformat("2026-01-01T00:00:00+00:00") + timedelta(days=3 * next(_numbers))
    return {"entry": entry, "from": to_micros(since), "to": to_micros(since + timedelta(days=3))}


@contextmanager
def all_paused(cluster: BeatCluster) -> Iterator[Requests]:
    """Pause the processes while requests are posted."""
    for replica in cluster:
        replica.pause()
    try:
        yield requests_of(cluster)
    finally:
        for replica in cluster:
            replica.resume()


def test_step_down_hands_over_to_another_replica(shared_cluster: BeatCluster):
    leader = shared_cluster.wait_for_leader()
    before = shared_cluster.lease()
    reply = ask(shared_cluster, RequestKind.STEP_DOWN)
    assert reply.ok
    assert reply.leader == before["holder"]
    other = shared_cluster.wait_for_leader(other_than=leader)
    assert shared_cluster.lease()["epoch"] > before["epoch"]
    assert other is not leader
    shared_cluster.assert_all_alive()


@pytest.mark.slow
def test_pause_survives_a_takeover_and_resume_applies_the_misfire_policy(cluster: BeatCluster):
    """Nothing is enqueued during the pause. Afterwards each instant has one verdict."""
    wait_for(lambda: sent(cluster, "fast"), what="a first message")
    leader = cluster.wait_for_leader()
    assert ask(cluster, RequestKind.PAUSE, reason="maintenance").ok
    count = len(sent(cluster, "fast"))
    assert not ask(cluster, RequestKind.PAUSE).ok
    leader.kill()
    cluster.wait_for_leader(other_than=leader)
    assert ask(cluster, RequestKind.REPORT).data["paused"]["reason"] == "maintenance"
    time.sleep(1.5)
    assert len(sent(cluster, "fast")) == count
    assert ask(cluster, RequestKind.RESUME).ok
    wait_for(lambda: len(sent(cluster, "fast")) > count + 1, what="messages after resume")
    times = [datetime.fromisoformat(h["ha_beat"]["scheduled_at"]) for h in sent(cluster, "fast")]
    assert len(set(times)) == len(times)
    skipped = [r for r in cluster.journal() if r.get("verdict") == "skipped" and r["entry"] == "fast"]
    assert any(r["why"] == "coalesced" and r["count"] >= 2 for r in skipped)
    assert [r["event"] for r in cluster.journal() if r.get("kind") == "control"] == ["paused", "resumed"]


@pytest.mark.slow
def test_pause_survives_the_loss_of_the_ledger(cluster: BeatCluster):
    """After FLUSHALL the next leader restores the pause from its memory."""
    assert ask(cluster, RequestKind.PAUSE, reason="kept").ok
    time.sleep(2.5)  # standbys look at the ledger about once a second
    cluster.admin.flushall()
    wait_for(lambda: cluster.lease().get("state") == "held", 20, "a leader after the loss")
    wait_for(lambda: cluster.admin.hget(cluster.key("ledger"), "m:paused"), 20, "the pause")
    time.sleep(1.5)
    assert sent(cluster, "fast") == []


@pytest.mark.slow
def test_paused_entry_is_skipped_through_takeover_and_loss(cluster: BeatCluster):
    def skipped() -> int:
        return sum(r["why"] == "paused" for r in cluster.journal() if r.get("verdict") == "skipped")

    wait_for(lambda: sent(cluster, "fast"), what="a first message")
    assert ask(cluster, RequestKind.PAUSE_ENTRY, entry="fast", reason="kept").ok
    count = len(sent(cluster, "fast"))
    leader = cluster.wait_for_leader()
    leader.kill()
    leader = cluster.wait_for_leader(other_than=leader)
    wait_for(skipped, what="skipped occurrences under the next leader")
    assert len(sent(cluster, "fast")) == count
    cluster.admin.flushall()
    wait_for(lambda: ask(cluster, RequestKind.REPORT).data["paused_entries"] == ["fast"], 20, "the pause")
    wait_for(skipped, what="skipped occurrences after the loss")
    assert sent(cluster, "fast") == []
    before = time.time()
    assert ask(cluster, RequestKind.RESUME_ENTRY, entry="fast").ok
    wait_for(lambda: sent(cluster, "fast"), what="messages after resume")
    assert datetime.fromisoformat(sent(cluster, "fast")[0]["ha_beat"]["scheduled_at"]).timestamp() >= before


def test_manual_run_is_one_message_and_moves_no_position(shared_cluster: BeatCluster):
    """Asking again with the same id gives the same answer and sends nothing."""
    position = shared_cluster.ledger()["rare"]
    before = sum(r.get("kind") == "manual" for r in shared_cluster.journal())
    request = Request(RequestKind.RUN, {"entry": "rare"}, by="tester")
    requests = requests_of(shared_cluster)
    reply = requests.ask(request, SystemClock(), 20)
    assert reply.ok, reply
    assert requests.ask(request, SystemClock(), 20) == reply
    (headers,) = sent(shared_cluster, "rare")
    assert headers["id"] == reply.data["task_id"] == request.task_id()
    assert headers["ha_beat"]["manual"] is True
    assert shared_cluster.ledger()["rare"] == position
    manual = [r["id"] for r in shared_cluster.journal() if r.get("kind") == "manual"]
    assert manual[before:] == [reply.data["task_id"]]


def test_unknown_entry_is_refused_with_the_nearest_name(shared_cluster: BeatCluster):
    reply = ask(shared_cluster, RequestKind.RUN, entry="rrae")
    assert not reply.ok
    assert reply.code is ReplyCode.NO_SUCH_ENTRY
    assert reply.data["nearest"] == ["rare"]


def test_request_withdrawn_or_past_its_deadline_is_not_carried_out(shared_cluster: BeatCluster):
    withdrawn = Request(RequestKind.RUN, {"entry": "rare"})
    with all_paused(shared_cluster) as requests:
        assert requests.post(withdrawn, lifetime=60) is None
        assert requests.withdraw(withdrawn.id) == (True, None)
        requests.post(Request(RequestKind.RUN, {"entry": "rare"}), lifetime=0.1)
        time.sleep(0.3)
    assert ask(shared_cluster, RequestKind.REPORT).ok
    assert requests.waiting()[0] == []
    assert sent(shared_cluster, "rare") == []


@pytest.mark.slow
def test_backfill_sends_skipped_instants_once_and_refuses_the_others(cluster: BeatCluster):
    """Instants that the journal shows as enqueued are refused even with force."""
    wait_for(lambda: len(sent(cluster, "fast")) >= 2, what="messages")
    assert ask(cluster, RequestKind.PAUSE).ok
    time.sleep(2)
    assert ask(cluster, RequestKind.RESUME).ok

    def gap() -> dict[str, Any] | None:
        return next((r for r in cluster.journal() if r.get("verdict") == "skipped" and r["entry"] == "fast"), None)

    skipped = wait_for(gap, what="a skipped range")
    first, until = (datetime.fromisoformat(skipped[name]) for name in ("from", "until"))
    args = {"entry": "fast", "from": to_micros(first - timedelta(seconds=0.6)), "to": to_micros(until)}

    planned = ask(cluster, RequestKind.BACKFILL, **args, dry_run=True)
    states = Counter(line["outcome"] for line in planned.data["instants"])
    assert states[BackfillOutcome.PLANNED] == skipped["count"]
    assert states[BackfillOutcome.ALREADY_ENQUEUED] == 1
    done = ask(cluster, RequestKind.BACKFILL, **args)
    assert Counter(line["outcome"] for line in done.data["instants"])[BackfillOutcome.ENQUEUED] == skipped["count"]
    repeated = ask(cluster, RequestKind.BACKFILL, **args, force=True)
    assert {line["outcome"] for line in repeated.data["instants"]} == {BackfillOutcome.ALREADY_ENQUEUED}

    ids = [headers["id"] for headers in sent(cluster, "fast")]
    assert len(set(ids)) == len(ids)
    assert sum("backfill" in headers["ha_beat"] for headers in sent(cluster, "fast")) == skipped["count"]


def test_backfill_of_unrecorded_instants_needs_force(shared_cluster: BeatCluster):
    args = three_days("rare")
    reply = ask(shared_cluster, RequestKind.BACKFILL, **args)
    assert not reply.ok
    assert [line["outcome"] for line in reply.data["instants"]] == [BackfillOutcome.NOT_IN_JOURNAL] * 3
    assert sent(shared_cluster, "rare") == []
    assert ask(shared_cluster, RequestKind.BACKFILL, **args, force=True).ok
    assert len(sent(shared_cluster, "rare")) == 3
    assert ask(shared_cluster, RequestKind.BACKFILL, **three_days("fast")).code is ReplyCode.TOO_MANY_INSTANTS


@pytest.mark.slow
def test_requests_work_with_the_lease_in_another_database(redis_server: RedisServer):
    """Messages are claimed, published and confirmed."""
    broker, lease = redis_server.url_for(0), redis_server.url_for(1)
    settings = {"lease_ttl": 3, "poll_interval": 0.05}
    with BeatCluster(broker, lease_urls=lease, spec=SPEC, replicas=2, settings=settings) as cluster:
        cluster.wait_until_up()
        cluster.wait_for_leader()
        wait_for(lambda: "fast" in cluster.ledger(), what="the schedule in the ledger")
        assert wait_for(lambda: ask(cluster, RequestKind.REPORT).data["dispatch"]["path"], what="a path") == "claim"
        ran = ask(cluster, RequestKind.RUN, entry="rare")
        assert ran.ok, ran
        args = three_days("rare")
        filled = ask(cluster, RequestKind.BACKFILL, **args, force=True)
        assert filled.ok, filled
        assert not ask(cluster, RequestKind.BACKFILL, **args, force=True).ok
        queue: Any = redis_server.admin.lrange("celery", 0, -1)
        rare = [m["headers"] for m in map(json.loads, queue) if m["headers"]["ha_beat"]["entry"] == "rare"]
        assert len(rare) == len({headers["id"] for headers in rare}) == 4
        assert ask(cluster, RequestKind.PAUSE).ok
        count = redis_server.admin.llen("celery")
        time.sleep(1.2)
        assert redis_server.admin.llen("celery") == count


@pytest.mark.slow
def test_request_that_a_dead_leader_had_begun_is_not_sent_again(cluster: BeatCluster):
    """The leader died between the send and the answer: the next leader only answers."""
    request = Request(RequestKind.RUN, {"entry": "rare"}, by="tester")
    begun = cluster.key("progress"), request.id
    with all_paused(cluster) as requests:
        requests.post(request, lifetime=60)
        # The dispatch script writes this when it carries out the only step of the request.
        cluster.admin.hset(*begun, 1)
    assert wait_for(lambda: requests.answer_to(request.id), 30, "an answer").code is ReplyCode.SENT_EARLIER
    assert sent(cluster, "rare") == []
    assert not cluster.admin.hexists(*begun)
