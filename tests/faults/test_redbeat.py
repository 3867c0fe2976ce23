"""Real beats whose schedule is in redbeat's keys, in a Redis apart from the lease's, under faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from celery import Celery
from celery.schedules import schedule

from tests.faults.cluster import BeatCluster
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


@pytest.mark.slow
@pytest.mark.parametrize("fault", [sigkill, pause, rolling, away, wipe, wipe_and_kill])
def test_redbeat_entry_is_sent_once_each_second_under_a_fault(
    fault: Callable[[BeatCluster, RedisServer], None], redis_server: RedisServer
) -> None:
    """A deleted entry stays deleted, and the other is in redbeat's keys at the end."""
    with need(lambda: RedisServer(appendonly=True)) as store:
        app = Celery("red", broker=redis_server.url, set_as_current=False)
        app.conf.update(redbeat_redis_url=store.url, timezone="UTC")
        entries = {
            name: redbeat.RedBeatSchedulerEntry(name, "tick", schedule(1.0), app=app) for name in ("kept", "deleted")
        }
        for entry in entries.values():
            entry.save()

        def instants(name: str) -> list[datetime]:
            raw: Any = redis_server.client().lrange("celery", 0, -1)
            headers = [json.loads(message)["headers"]["ha_beat"] for message in reversed(raw)]
            return [datetime.fromisoformat(one["scheduled_at"]) for one in headers if one["entry"] == name]

        def wait_for_more() -> None:
            sent = len(instants("kept"))
            wait_for(lambda: len(instants("kept")) >= sent + 3, 40, "messages")

        with BeatCluster(
            redis_server.url,
            replicas=2,
            scheduler="ha_beat.redbeat",
            spec={},
            settings={"lease_ttl": TTL, "misfire": "all"},
            config={"redbeat_redis_url": store.url},
        ) as cluster:
            wait_for(lambda: instants("deleted"), 40, "the entry to delete")
            cluster.wait_until_up()
            entries["deleted"].delete()
            time.sleep(3)
            deleted = len(instants("deleted"))
            wait_for_more()
            fault(cluster, store)
            wait_for_more()
            wait_for(lambda: store.client().exists("redbeat:kept"), 20, "the entry in redbeat's Redis")
            assert not store.client().exists("redbeat:deleted")
            assert len(instants("deleted")) == deleted
        assert {later - earlier for earlier, later in pairwise(instants("kept"))} == {timedelta(seconds=1)}
