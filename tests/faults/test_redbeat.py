"""Beats under faults whose schedule is in redbeat's keys, in another Redis than the lease."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from celery import Celery
from celery.schedules import schedule

from tests.faults.cluster import BeatCluster
from tests.faults.history import queued_instants
from tests.support.servers import RedisServer, need, wait_for

redbeat = pytest.importorskip("redbeat")

TTL = 3


def sigkill(cluster: BeatCluster, _: RedisServer) -> None:
    leader = cluster.wait_for_leader()
    leader.kill()
    cluster.wait_for_leader(other_than=leader)


def pause(cluster: BeatCluster, _: RedisServer) -> None:
    leader = cluster.wait_for_leader()
    leader.pause()
    cluster.wait_for_leader(other_than=leader)
    time.sleep(TTL)
    leader.resume()


def away(_: BeatCluster, store: RedisServer) -> None:
    store.stop()
    time.sleep(20)
    store.start()


def wipe(_: BeatCluster, store: RedisServer) -> None:
    store.admin.flushall()


def wipe_and_kill(cluster: BeatCluster, store: RedisServer) -> None:
    """Only a successor can restore the entries: the leader is stopped before the loss."""
    leader = cluster.wait_for_leader()
    leader.pause()
    store.admin.flushall()
    leader.kill()
    cluster.wait_for_leader(other_than=leader)


def rolling(cluster: BeatCluster, _: RedisServer) -> None:
    for replica in cluster:
        led = cluster.wait_for_leader() is replica
        replica.terminate()
        if led:
            cluster.wait_for_leader(other_than=replica)
        replica.start()
        cluster.wait_until_up()


def saved(app: Celery, name: str) -> Any:
    """Save an entry of one second, and return it."""
    return redbeat.RedBeatSchedulerEntry(name, "tick", schedule(1.0), app=app).save()


def instants(redis_server: RedisServer, name: str) -> list[datetime]:
    return queued_instants(redis_server.admin, name)


def assert_each_second_has_a_message(redis_server: RedisServer) -> None:
    steps = {later - earlier for earlier, later in pairwise(instants(redis_server, "kept"))}
    assert steps == {timedelta(seconds=1)}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [sigkill, pause, rolling, away, wipe, wipe_and_kill])
def test_redbeat_entry_is_sent_once_each_second_under_a_fault(
    fault: Callable[[BeatCluster, RedisServer], None], redis_server: RedisServer
) -> None:
    """A deleted entry stays deleted, and the other is in redbeat's keys at the end."""
    with need(lambda: RedisServer(appendonly=True)) as store:
        app = Celery("red", broker=redis_server.url, set_as_current=False)
        app.conf.update(redbeat_redis_url=store.url, timezone="UTC")
        saved(app, "kept")
        deleted_entry = saved(app, "deleted")

        def wait_for_more() -> None:
            sent = len(instants(redis_server, "kept"))
            wait_for(lambda: len(instants(redis_server, "kept")) >= sent + 3, 40, "messages")

        with BeatCluster(
            redis_server.url,
            replicas=2,
            scheduler="ha_beat.redbeat",
            spec={},
            settings={"lease_ttl": TTL, "misfire": "all"},
            config={"redbeat_redis_url": store.url},
        ) as cluster:
            wait_for(lambda: instants(redis_server, "deleted"), 40, "the entry to delete")
            cluster.wait_until_up()
            deleted_entry.delete()
            time.sleep(3)
            deleted = len(instants(redis_server, "deleted"))
            wait_for_more()
            fault(cluster, store)
            wait_for_more()
            wait_for(lambda: store.admin.exists("redbeat:kept"), 20, "the entry in redbeat's Redis")
            assert not store.admin.exists("redbeat:deleted")
            assert len(instants(redis_server, "deleted")) == deleted
        assert_each_second_has_a_message(redis_server)


def kill_both(ours: BeatCluster, theirs: BeatCluster, store: RedisServer) -> None:
    """redbeat's standby waits until the dead leader's lock expires."""
    sigkill(ours, store)
    next(replica for replica in theirs if "Acquired lock" in replica.log_text()).kill()
    assert store.admin.exists("theirs::lock")


def away_for_both(_: BeatCluster, theirs: BeatCluster, store: RedisServer) -> None:
    """redbeat's leader and its standby exit."""
    store.stop()
    wait_for(lambda: not any(replica.alive for replica in theirs), 60, "the end of redbeat's beats")
    store.start()


def wipe_both(_: BeatCluster, theirs: BeatCluster, store: RedisServer) -> None:
    """redbeat loses its entries, also after a restart."""
    store.admin.flushall()
    for replica in theirs:
        replica.restart().wait_for_log_of_start()
    assert not store.admin.exists("theirs:kept")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [kill_both, away_for_both, wipe_both])
def test_entry_goes_on_under_a_fault_that_silences_redbeat_itself(
    fault: Callable[[BeatCluster, BeatCluster, RedisServer], None], redis_server: RedisServer
) -> None:
    """Both run with the same entry on one Redis. redbeat's own scheduler misses occurrences."""
    with need(lambda: RedisServer(appendonly=True)) as store:
        stock = {
            "redbeat_redis_url": store.url,
            "redbeat_key_prefix": "theirs:",
            "redbeat_lock_timeout": 30,
            "beat_max_loop_interval": 1,
            "task_default_queue": "theirs",
        }
        for config in ({"redbeat_redis_url": store.url}, stock):
            app = Celery("red", broker=redis_server.url, set_as_current=False)
            app.conf.update(timezone="UTC", **config)
            saved(app, "kept")
        shared: Any = {"replicas": 2, "spec": {}}
        ours = BeatCluster(
            redis_server.url,
            scheduler="ha_beat.redbeat",
            settings={"lease_ttl": TTL, "misfire": "all"},
            config={"redbeat_redis_url": store.url},
            **shared,
        )
        theirs = BeatCluster(redis_server.url, scheduler="redbeat.RedBeatScheduler", config=stock, **shared)

        def sent() -> tuple[int, int]:
            return len(instants(redis_server, "kept")), int(redis_server.admin.llen("theirs"))

        with ours, theirs:
            wait_for(lambda: min(sent()) >= 3, 60, "messages of both")
            ours.wait_until_up()
            # Without the mark, a loss looks like a deletion.
            wait_for(lambda: store.admin.exists("redbeat::ha_beat"), 20, "the mark of a leader")
            fault(ours, theirs, store)
            before = sent()
            wait_for(lambda: sent()[0] >= before[0] + 6, 40, "messages of ours")
            assert sent()[1] <= before[1] + 1
            assert sum(replica.alive for replica in ours) == (1 if fault is kill_both else 2)
        assert_each_second_has_a_message(redis_server)
