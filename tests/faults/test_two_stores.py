"""Replicas of one cluster and one broker with two Redis servers for the lease: only one side leads."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.checker import duplicates_by_occurrence
from tests.faults.cluster import BeatCluster
from tests.faults.history import History, RedisQueueConsumer
from tests.support.servers import RedisServer, need, wait_for

pytestmark = pytest.mark.slow

REFUSED = "action=leading_forbidden reason=other_store"

#: Seconds after which another lease may replace a mark that is not refreshed.
PATIENCE = 5.0


@contextmanager
def two_sides(broker: RedisServer, *leases: str | None) -> Iterator[tuple[BeatCluster, History]]:
    """Start a replica for each lease; None is the broker itself. Assert that no occurrence arrives twice."""
    history = History()
    with (
        RedisQueueConsumer(history, broker.url, ["celery"]),
        BeatCluster(
            broker.url,
            spec={"fast": {"every": 0.3}},
            replicas=len(leases),
            settings={"lease_ttl": 2},
            admin_url=broker.url,
            replica_env=[{"HA_BEAT_REDIS_URL": url} if url else {} for url in leases],
        ) as cluster,
    ):
        yield cluster, history
        cluster.assert_all_alive()
    assert duplicates_by_occurrence(history.messages()) == []


@pytest.mark.parametrize("first", ["another store", "the broker"])
def test_two_stores_refuse_each_other(redis_server: RedisServer, first: str):
    """One of two sides that start together enqueues. The other one enqueues some time after the first has ended."""
    with need(RedisServer) as other, need(RedisServer) as third:
        stores = [third.url if first == "another store" else None, other.url]
        with two_sides(redis_server, *stores) as (cluster, history):
            cluster.wait_until_up()
            history.wait_for_messages(3, 30)
            refused = wait_for(lambda: next((one for one in cluster if REFUSED in one.log_text()), None), 30, "refusal")
            (at_work,) = [one for one in cluster if one is not refused]
            before = len(history.messages())
            # Longer than the lifetime of a mark.
            time.sleep(PATIENCE + 1)
            assert len(history.messages()) > before + 5
            assert "action=enqueued entry=fast" not in refused.log_text()
            for store in (third if stores[0] else redis_server, other):
                assert f"127.0.0.1:{store.port}/0" in refused.log_text()
            at_work.kill()
            refused.wait_for_log("action=enqueued entry=fast", timeout=30)
            # The lease was moved: a replica with the old setting is refused.
            at_work.start()
            at_work.wait_for_log(REFUSED, timeout=30)


def test_store_that_loses_its_state_is_not_taken_for_another(redis_server: RedisServer):
    """The mark is in the broker."""
    with need(RedisServer) as store, two_sides(redis_server, store.url, store.url) as (cluster, history):
        cluster.wait_until_up()
        history.wait_for_messages(3, 30)
        store.admin.flushall()
        history.wait_for_more(3)
        assert not any(REFUSED in one.log_text() for one in cluster)
