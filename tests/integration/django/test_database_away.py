"""The database is stopped: what is known of the schedule goes on, and the rows catch up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise

import pytest
from django.db import connection, connections, transaction

from tests.faults.cluster import BeatCluster, Replica
from tests.integration.django.beats import beats, every, fresh, row, soon
from tests.integration.django.conftest import Site
from tests.support.servers import wait_for


def assert_no_gap(site: Site, name: str, seconds: float) -> None:
    """Each instant on the grid got one message."""
    found = [
        datetime.fromisoformat(headers["ha_beat"]["scheduled_at"])
        for headers in site.messages()
        if headers["periodic_task_name"] == name
    ]
    assert [(b - a).total_seconds() for a, b in pairwise(found)] == [seconds] * (len(found) - 1)


def enqueued(site: Site, count: int) -> None:
    before = len(site.names())
    wait_for(lambda: len(site.names()) >= before + count, 30, f"{count} more messages", 0.05)


def stop(site: Site) -> None:
    assert site.server is not None
    site.server.stop()
    connections.close_all()


def start(site: Site) -> None:
    assert site.server is not None
    site.server.start()


@contextmanager
def once_it_leads(cluster: BeatCluster) -> Iterator[Replica]:
    yield cluster.wait_for_leader()


def assert_rows_catch_up(cluster: BeatCluster, task: object) -> None:
    entry = str(task.pk)

    def caught_up() -> bool:
        row = cluster.ledger()[entry]
        return row["count"] - fresh(task).total_run_count <= 3 and row["count"] > 3

    wait_for(caught_up, 20, "the row to catch up", 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [30])
def test_dispatch_goes_on_while_the_leader_has_no_database(postgres_site, seconds):
    """Nothing is late, nothing twice, and the rows catch up by themselves."""
    task = row("task", interval=every(0.5))
    with beats(postgres_site) as cluster:
        wait_for(postgres_site.names, 40, "the first message", 0.05)
        leader = cluster.wait_for_leader()
        stop(postgres_site)
        enqueued(postgres_site, 2)
        time.sleep(seconds)
        enqueued(postgres_site, 2)
        leader.wait_for_log("action=schedule_store_failed")
        assert cluster.leader() is leader
        start(postgres_site)
        leader.wait_for_log("action=schedule_store_back")
        assert_rows_catch_up(cluster, task)
        cluster.assert_all_alive()

    assert_no_gap(postgres_site, "task", 0.5)


@pytest.mark.slow
def test_a_database_that_answers_nobody_holds_up_only_the_rows(postgres_site):
    """The table is locked, as by a migration: dispatch goes on, a takeover too, and a stop does not wait for it."""
    task = row("task", interval=every(0.5))
    with beats(postgres_site, replicas=3) as cluster:
        wait_for(postgres_site.names, 40, "the first message", 0.05)
        cluster.wait_until_up()
        enqueued(postgres_site, 3)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE django_celery_beat_periodictask IN ACCESS EXCLUSIVE MODE")
            enqueued(postgres_site, 4)
            leader = cluster.wait_for_leader()
            leader.kill()
            second = cluster.wait_for_leader(other_than=leader)
            enqueued(postgres_site, 3)
            second.terminate()
            cluster.wait_for_leader(other_than=second)
            enqueued(postgres_site, 3)
        assert_rows_catch_up(cluster, task)

    assert_no_gap(postgres_site, "task", 0.5)


@pytest.mark.slow
def test_who_may_only_read_stands_by_and_leads_without_its_rows(postgres_site):
    """A standby writes nothing, also at its end; once it leads edits count, and the rows catch up when they may."""
    reader = Site({**postgres_site.database, "USER": "reader"}, postgres_site.redis)
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    task = row("task", interval=every(0.5))
    ends = row("ends", interval=every(0.5), expires=soon(6))
    row("once", interval=every(1), one_off=True)
    spec = {"static": {"every": 3600}}
    with (
        beats(postgres_site, replicas=1, spec=spec) as leaders,
        once_it_leads(leaders) as leader,
        beats(reader, replicas=2, spec=spec) as standbys,
    ):
        for standby in standbys:
            standby.wait_for_log("action=leader_seen", 40)
        wait_for(lambda: not fresh(ends).enabled, 40, "a row to end", 0.1)
        enqueued(postgres_site, 2)
        standbys[1].terminate()
        assert not any("denied" in standby.log_text() for standby in standbys)
        leader.kill()
        standbys.wait_for_leader()
        enqueued(postgres_site, 2)
        new = row("new", interval=every(0.5))
        wait_for(lambda: "new" in postgres_site.names(), 10, "a message of the new row", 0.05)
        standbys[0].wait_for_log("permission denied")
        assert not fresh(new).total_run_count
        with connection.cursor() as cursor:
            cursor.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO reader")
        standbys[0].wait_for_log("action=schedule_store_back")
        assert_rows_catch_up(standbys, task)

    assert_no_gap(postgres_site, "task", 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 30])
def test_a_takeover_needs_no_database(postgres_site, seconds):
    """The standby has the schedule; the rows get what neither leader could write while it was away."""
    task = row("task", interval=every(0.5))
    with beats(postgres_site) as cluster:
        wait_for(postgres_site.names, 40, "the first message", 0.05)
        cluster.wait_until_up()
        standby = cluster.standbys()[0]
        standby.wait_for_log("action=leader_seen")
        time.sleep(1.5)
        leader = cluster.wait_for_leader()
        stop(postgres_site)
        enqueued(postgres_site, 2)
        leader.kill()
        cluster.wait_for_leader(other_than=leader)
        enqueued(postgres_site, 3)
        time.sleep(seconds)
        enqueued(postgres_site, 2)
        start(postgres_site)
        assert_rows_catch_up(cluster, task)

    assert_no_gap(postgres_site, "task", 0.5)


def test_a_replica_that_never_read_the_schedule_does_not_lead(postgres_site):
    """It says so, and leads as soon as the database is there."""
    row("task", interval=every(0.5))
    stop(postgres_site)
    with beats(postgres_site, replicas=1) as cluster:
        cluster[0].wait_for_log("known=False", 40)
        time.sleep(1)
        assert cluster.lease() == {}
        start(postgres_site)
        cluster.wait_for_leader()
        wait_for(postgres_site.names, 20, "a message", 0.05)
        cluster.assert_all_alive()
