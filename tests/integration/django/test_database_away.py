"""The database is unreachable, locked or read-only: known entries continue, and the rows catch up."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from django.db import connection, connections, transaction

from tests.faults.cluster import BeatCluster
from tests.integration.django.beats import beats, kill_leader
from tests.integration.django.conftest import Site
from tests.integration.django.rows import every, fresh, row, soon, wait_until_disabled
from tests.integration.monitoring.support import ask
from tests.support.servers import free_port, wait_for


@contextlib.contextmanager
def database_stopped(site: Site) -> Iterator[None]:
    assert site.server is not None
    site.server.stop()
    connections.close_all()
    try:
        yield
    finally:
        site.server.start()


def assert_rows_catch_up(cluster: BeatCluster, task: object) -> None:
    def caught_up() -> bool:
        entry = cluster.ledger()[str(task.pk)]
        return entry["count"] - fresh(task).total_run_count <= 3 and entry["count"] > 3

    wait_for(caught_up, 20, "the row to catch up", 0.1)


@pytest.mark.slow
def test_dispatch_continues_while_the_leader_has_no_database(postgres_site):
    task = row("task", interval=every(0.5))
    with beats(postgres_site) as cluster:
        postgres_site.wait_for()
        leader = cluster.wait_for_leader()
        with database_stopped(postgres_site):
            postgres_site.wait_for_more(2)
            time.sleep(30)
            postgres_site.wait_for_more(2)
            leader.wait_for_log("action=duty_late")
            assert cluster.leader() is leader
        leader.wait_for_log("action=duty_resumed")
        assert_rows_catch_up(cluster, task)
        cluster.assert_all_alive()
    postgres_site.assert_each_once("task", 0.5)


@pytest.mark.slow
def test_locked_table_delays_only_the_rows(postgres_site):
    """A migration may lock it. Dispatch and takeover continue, and a stop does not wait."""
    task = row("task", interval=every(0.5))
    with beats(postgres_site, replicas=3) as cluster:
        postgres_site.wait_for()
        cluster.wait_until_up()
        postgres_site.wait_for_more(3)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE django_celery_beat_periodictask IN ACCESS EXCLUSIVE MODE")
            postgres_site.wait_for_more(4)
            kill_leader(cluster)
            postgres_site.wait_for_more(3)
            second = cluster.wait_for_leader()
            second.terminate()
            cluster.wait_for_leader(other_than=second)
            postgres_site.wait_for_more(3)
        assert_rows_catch_up(cluster, task)
    postgres_site.assert_each_once("task", 0.5)


@pytest.mark.slow
def test_replica_with_read_only_access_stands_by_and_leads(postgres_site):
    """A standby writes nothing, even at its end. A leader without write access follows edits."""
    role = f"reader_{time.time_ns()}"
    reader = Site({**postgres_site.database, "USER": role}, postgres_site.redis)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    task = row("task", interval=every(0.5))
    ends = row("ends", interval=every(0.5), expires=soon(6))
    row("once", interval=every(1), one_off=True)
    spec = {"static": {"every": 3600}}
    with beats(postgres_site, replicas=1, spec=spec) as leaders:
        leader = leaders.wait_for_leader()
        with beats(reader, replicas=2, spec=spec) as standbys:
            for standby in standbys:
                standby.wait_for_log("action=leader_seen", 40)
            wait_until_disabled(ends)
            postgres_site.wait_for_more(2)
            standbys[1].terminate()
            assert not any("denied" in standby.log_text() for standby in standbys)
            leader.kill()
            standbys.wait_for_leader()
            postgres_site.wait_for_more(2)
            new = row("new", interval=every(0.5))
            postgres_site.wait_for("new", within=10)
            standbys[0].wait_for_log("permission denied")
            assert not fresh(new).total_run_count
            with connection.cursor() as cursor:
                cursor.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
            standbys[0].wait_for_log("action=duty_resumed")
            assert_rows_catch_up(standbys, task)
    postgres_site.assert_each_once("task", 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 30])
def test_takeover_needs_no_database(postgres_site, seconds):
    """The rows receive the runs of both leaders later."""
    task = row("task", interval=every(0.5))
    with beats(postgres_site) as cluster:
        postgres_site.wait_for()
        cluster.wait_until_up()
        cluster.standbys()[0].wait_for_log("action=leader_seen")
        time.sleep(1.5)
        with database_stopped(postgres_site):
            postgres_site.wait_for_more(2)
            kill_leader(cluster)
            postgres_site.wait_for_more(3)
            time.sleep(seconds)
            postgres_site.wait_for_more(2)
        assert_rows_catch_up(cluster, task)
    postgres_site.assert_each_once("task", 0.5)


@pytest.mark.slow
def test_replica_that_never_read_the_schedule_does_not_lead(postgres_site):
    """The replica reports this, and leads once the database is reachable."""
    row("task", interval=every(0.5))
    with contextlib.ExitStack() as stack:
        with database_stopped(postgres_site):
            port = free_port()
            env = {"HA_BEAT_HTTP_BIND": f"127.0.0.1:{port}"}
            cluster = stack.enter_context(beats(postgres_site, replicas=1, env=env))
            cluster[0].wait_for_log("duty=read_schedule", 40)
            for _ in range(3):
                time.sleep(1)
                assert ask(port, "/livez").status == 200
                answer = ask(port, "/readyz")
                assert (answer.status, "schedule_unread" in answer.text) == (503, True)
            assert cluster.lease() == {}
        cluster.wait_for_leader()
        postgres_site.wait_for(within=20)
        wait_for(lambda: ask(port, "/readyz").status == 200, 20, "readiness")
        cluster.assert_all_alive()
