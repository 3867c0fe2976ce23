"""Many rows due in one minute, beside stock django-celery-beat: seconds to the last message, and queries."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from tests.integration.django.beats import HA, STOCK, beats, cron, every, row
from tests.integration.django.conftest import Site
from tests.integration.django.test_crash import next_minute, sleep_until
from tests.support.servers import wait_for

BEFORE = timedelta(seconds=2)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def minutely(count: int) -> None:
    """So many rows, each of a crontab that is due every minute."""
    crontab = cron()
    PeriodicTask.objects.bulk_create(
        [PeriodicTask(name=f"minutely {number}", task="tick", crontab=crontab) for number in range(count)]
    )
    PeriodicTasks.update_changed()


def log_statements() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER SYSTEM SET log_statement = 'all'")
        cursor.execute("SELECT pg_reload_conf()")


def statements(site: Site) -> int:
    """How many the database has been asked so far; ours too, so this test asks none meanwhile."""
    assert site.server is not None
    log = (site.server.directory / "server.log").read_text(errors="replace")
    return log.count("LOG:  statement:") + log.count("LOG:  execute ")


def burst(site: Site, count: int, scheduler: str, replicas: int) -> tuple[float, int]:
    """Seconds from the minute to its last message, and statements until all rows are written."""
    client = site.redis.client()
    minutely(count)
    row("first", interval=every(3600))
    with beats(site, replicas=replicas, scheduler=scheduler) as cluster:
        if scheduler == HA:
            cluster.wait_for_leader()
            wait_for(lambda: len(cluster.ledger()) > count, 120, "the rows to be armed", 1)
        else:
            cluster.wait_until_up()
        minute = next_minute(at_least=10)
        sleep_until(minute - BEFORE)
        client.delete("celery")
        before = statements(site)
        wait_for(lambda: client.llen("celery") >= count, 300, f"{count} messages", 0.01)
        seconds = (datetime.now(UTC) - minute).total_seconds()
        time.sleep(5)
        asked = statements(site) - before
    assert client.llen("celery") >= count
    return seconds, asked


def test_a_thousand_rows_beside_stock(postgres_site, figure: Callable[[str], None]):
    log_statements()
    stock_seconds, stock_asked = burst(postgres_site, 1000, STOCK, replicas=1)
    PeriodicTask.objects.all().delete()
    postgres_site.redis.admin.flushall()
    seconds, asked = burst(postgres_site, 1000, HA, replicas=3)
    figure(
        f"1,000 rows due in one minute\n"
        f"stock                {stock_seconds:6.1f} s, {stock_asked} statements\n"
        f"ha_beat, 3 replicas  {seconds:6.1f} s, {asked} statements"
    )
    assert seconds * 5 < stock_seconds
    assert asked * 10 < stock_asked


def test_ten_thousand_rows_and_a_takeover(postgres_site, figure: Callable[[str], None]):
    """The standby goes on within moments of the leader's death, though it has 10,000 rows to take over."""
    log_statements()
    minutely(10_000)
    client = postgres_site.redis.client()
    with beats(postgres_site, replicas=2) as cluster:
        cluster.wait_for_leader()
        wait_for(lambda: len(cluster.ledger()) >= 10_000, 120, "the rows to be armed", 1)
        minute = next_minute(at_least=10)
        sleep_until(minute - BEFORE)
        client.delete("celery")
        before = statements(postgres_site)
        wait_for(lambda: client.llen("celery") >= 10_000, 120, "10,000 messages", 0.01)
        seconds = (datetime.now(UTC) - minute).total_seconds()
        time.sleep(8)
        asked = statements(postgres_site) - before
        minute = next_minute(at_least=5)
        sleep_until(minute - BEFORE)
        client.delete("celery")
        wait_for(lambda: client.llen("celery") > 1000, 60, "the burst to be under way", 0.001)
        leader = cluster.wait_for_leader()
        leader.kill()
        killed_at = time.monotonic()
        left = client.llen("celery")
        wait_for(lambda: client.llen("celery") > left, 60, "the next message", 0.001)
        silence = time.monotonic() - killed_at
        wait_for(lambda: client.llen("celery") >= 10_000, 120, "10,000 messages", 0.01)
        time.sleep(1)
        assert client.llen("celery") == 10_000
        figure(
            f"10,000 rows due in one minute: {seconds:.1f} s, {asked} statements; "
            f"leader killed in the middle of the next: {silence:.2f} s without a message"
        )
    assert silence < 5
