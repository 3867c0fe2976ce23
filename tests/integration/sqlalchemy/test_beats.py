"""Real beats whose schedule is in sqlalchemy-celery-beat's tables."""

import json
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from tests.faults.checker import skipped_from_journal
from tests.faults.cluster import BeatCluster
from tests.integration.row_store.conftest import SqlRows
from tests.support.servers import Postgres, RedisServer, need, wait_for

HA = "ha_beat.sqlalchemy"


TTL = 3


def beats(
    url: str, redis: RedisServer, scheduler: str = HA, leases: RedisServer | None = None, **env: str
) -> BeatCluster:
    return BeatCluster(
        redis.url,
        lease_urls=leases.url if leases else None,
        replicas=2,
        scheduler=scheduler,
        app="tests.integration.sqlalchemy.app",
        cluster="rows",
        settings={"lease_ttl": TTL},
        env={"ROWS_URL": url, "BROKER_URL": redis.url, **env},
    )


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_each_occurrence_is_sent_once_under_faults(database, redis_server, tmp_path):
    """The leader is killed and paused past its lease, all replicas restart, PostgreSQL is down for 20 seconds."""
    if database == "sqlite":
        _run(f"sqlite:///{tmp_path}/rows.db", redis_server, None)
        return
    with need(Postgres) as server:
        _run(server.sqlalchemy_url, redis_server, server)


def instants(redis: RedisServer, entry: str) -> list[datetime]:
    """Return the due instant of each message of this entry, oldest first."""
    raw = [json.loads(message)["headers"]["ha_beat"] for message in redis.client().lrange("celery", 0, -1)]
    return [datetime.fromisoformat(found["scheduled_at"]) for found in reversed(raw) if found["entry"] == entry]


def _run(url: str, redis: RedisServer, server: Postgres | None) -> None:
    rows = SqlRows(url)
    rows.add("row", schedule={"every": 1, "period": "seconds"})

    def wait_for_more(name: str = "row", count: int = 3) -> None:
        sent = len(instants(redis, rows.id(name)))
        wait_for(lambda: len(instants(redis, rows.id(name))) >= sent + count, 40, f"messages of {name}")

    with beats(url, redis) as cluster:
        wait_for(lambda: "static" in rows.state(), 40, "the row of the settings")
        wait_for_more("static")
        leader = cluster.wait_for_leader()
        leader.kill()
        cluster.wait_for_leader(other_than=leader)
        leader.start()
        wait_for_more()
        cluster.wait_until_up()
        leader = cluster.wait_for_leader()
        leader.pause()
        cluster.wait_for_leader(other_than=leader)
        time.sleep(TTL)
        leader.resume()
        wait_for_more()
        for replica in list(cluster.replicas):
            replica.terminate()
            cluster.wait_for_leader(other_than=replica)
            replica.start()
            wait_for_more()
        if server is not None:
            row = rows.id("row")
            before = len(instants(redis, row))
            server.restart(down=20)
            # Known entries go on while the rows are away.
            assert len(instants(redis, row)) >= before + 15
        rows.add("new", schedule={"every": 2, "period": "seconds"})
        wait_for_more("new")
        wait_for(lambda: rows.state()["row"][2] >= len(instants(redis, rows.id("row"))) - 2, 20, "the last runs")
    for name in ("row", "static"):
        found = instants(redis, rows.id(name))
        assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(seconds=1)}


@pytest.mark.slow
def test_deleted_row_of_the_settings_stays_deleted_until_its_entry_changes(redis_server, tmp_path):
    """A kill of the leader and a restart of all beats do not restore it."""
    url = f"sqlite:///{tmp_path}/rows.db"
    rows = SqlRows(url)
    rows.add("row", schedule={"every": 1, "period": "seconds"})

    def wait_for_message() -> None:
        sent = len(instants(redis_server, rows.id("row")))
        wait_for(lambda: len(instants(redis_server, rows.id("row"))) > sent, 40, "a message of the row")

    with beats(url, redis_server) as cluster:
        wait_for(lambda: "static" in rows.state(), 40, "the row of the settings")
        rows.delete("static")
        leader = cluster.wait_for_leader()
        leader.kill()
        cluster.wait_for_leader(other_than=leader)
        wait_for_message()
    with beats(url, redis_server):
        wait_for_message()
    assert "static" not in rows.state()
    with beats(url, redis_server, STATIC_EVERY="2"):
        wait_for(lambda: "static" in rows.state(), 40, "the changed row of the settings")


@pytest.mark.slow
def test_two_beats_send_each_occurrence_once_and_the_stores_own_twice(redis_server):
    """Both run at the same time, on two databases of one server, which stops answering at the end."""
    psycopg = pytest.importorskip("psycopg")
    with need(Postgres) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE theirs")
        urls = [server.sqlalchemy_url, server.sqlalchemy_url.removesuffix("postgres") + "theirs"]
        for url in urls:
            SqlRows(url).add("row", schedule={"every": 1, "period": "seconds"})
        row = SqlRows(urls[0]).id("row")

        def sent() -> list[int]:
            return [int(redis_server.client().llen(queue)) for queue in ("celery", "theirs")]

        def theirs_for_one_of_ours() -> float:
            before = sent()
            wait_for(lambda: sent()[0] >= before[0] + 14, 40, "messages of ours")
            ours, theirs = (now - then for now, then in zip(sent(), before, strict=True))
            return theirs / ours

        own = "sqlalchemy_celery_beat.schedulers:DatabaseScheduler"
        with beats(urls[0], redis_server) as ours, beats(urls[1], redis_server, own, QUEUE="theirs") as theirs:
            wait_for(lambda: min(sent()) >= 6, 90, "messages of both")
            for cluster in (ours, theirs):
                cluster.wait_until_up(90)
            wait_for(
                lambda: datetime.now(UTC) - instants(redis_server, row)[-1] < timedelta(seconds=2), 60, "no backlog"
            )
            assert theirs_for_one_of_ours() > 1.6
            server.pause()
            assert theirs_for_one_of_ours() < 0.5
            server.resume()
        found = instants(redis_server, row)
        assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(seconds=1)}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_wiped_redis_of_the_lease_duplicates_nothing_and_explains_gaps(redis_server, tmp_path, killed):
    """The leader, or its successor after a kill at that moment, continues from the rows and its memory."""
    url = f"sqlite:///{tmp_path}/rows.db"
    SqlRows(url).add("row", schedule={"every": 1, "period": "seconds"})
    row = SqlRows(url).id("row")

    def wait_for_more() -> None:
        sent = len(instants(redis_server, row))
        wait_for(lambda: len(instants(redis_server, row)) >= sent + 4, 60, "messages")

    with need(RedisServer) as leases, beats(url, redis_server, leases=leases) as cluster:
        cluster.wait_until_up(90)
        # The standby has read the positions after the second: the first may be a backlog.
        wait_for_more()
        wait_for_more()
        leader = cluster.wait_for_leader()
        if killed:
            leader.pause()
        leases.admin.flushall()
        if killed:
            leader.kill()
        wait_for_more()
        skipped = skipped_from_journal(cluster.journal())
    found = instants(redis_server, row)
    assert len(found) == len(set(found))
    seconds = round((found[-1] - found[0]).total_seconds())
    missing = {found[0] + timedelta(seconds=number) for number in range(seconds)} - set(found)
    assert [at for at in missing if not any(each.covers(row, at) for each in skipped)] == []
