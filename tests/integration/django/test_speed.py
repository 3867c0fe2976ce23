"""Speed and number of queries with many rows, compared with stock django-celery-beat."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median

import pytest
from django.db import connection
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from tests.integration.django.beats import HA, STOCK, beats
from tests.integration.django.conftest import Site
from tests.integration.django.rows import cron, every, next_minute, reader_of, row, sleep_until
from tests.support.clocks import SteppedClock
from tests.support.servers import wait_for

BEFORE = timedelta(seconds=2)

#: Seconds in which the statements of replicas with nothing due are counted.
_QUIET = 6.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def create_minutely(count: int) -> None:
    """Create rows of one crontab that is due every minute."""
    crontab = cron()
    PeriodicTask.objects.bulk_create(
        [PeriodicTask(name=f"minutely {number}", task="tick", crontab=crontab) for number in range(count)]
    )
    PeriodicTasks.update_changed()


def create_mixed(count: int) -> None:
    """Create rows of 300 different schedules, and 20 that are due each second."""
    crontabs = [cron(minute=str(minute), hour=str(hour)) for minute in range(60) for hour in range(4)]
    intervals = [every(1800 + number) for number in range(60)]
    schedules = [{"crontab": crontab} for crontab in crontabs] + [{"interval": interval} for interval in intervals]
    fast = {"interval": every(1)}
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"row {number}", task="tick", **(fast if number < 20 else schedules[number % 300]))
        for number in range(count)
    )
    PeriodicTasks.update_changed()


def log_statements() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER DATABASE site SET log_statement = 'all'")


def statements(site: Site) -> int:
    """Return the number of statements so far. The test itself must send none while it counts."""
    assert site.server is not None
    log = (site.server.directory / "server.log").read_text(errors="replace")
    return log.count("LOG:  statement:") + log.count("LOG:  execute ")


def count_burst(site: Site, count: int, rest: float) -> tuple[float, int]:
    """Return the seconds from the next minute to its last message, and the statements that it took.

    They count until ``rest`` s later, without those that the replicas send in the same time with nothing due.
    """
    client = site.redis.client()
    minute = next_minute(at_least=10 + _QUIET)
    sleep_until(minute - BEFORE - timedelta(seconds=_QUIET))
    idle = statements(site)
    sleep_until(minute - BEFORE)
    site.clear()
    before = statements(site)
    began = time.monotonic()
    wait_for(lambda: client.llen("celery") >= count, 300, f"{count} messages", 0.01)
    seconds = (datetime.now(UTC) - minute).total_seconds()
    time.sleep(rest)
    idle_share = (before - idle) / _QUIET * (time.monotonic() - began)
    return seconds, max(statements(site) - before - round(idle_share), 0)


def burst(site: Site, count: int, scheduler: str, replicas: int) -> tuple[float, int]:
    create_minutely(count)
    row("first", interval=every(3600))
    with beats(site, replicas=replicas, scheduler=scheduler) as cluster:
        if scheduler == HA:
            cluster.wait_for_leader()
            wait_for(lambda: len(cluster.ledger()) > count, 120, "the rows to be armed", 1)
        else:
            cluster.wait_until_up()
        found = count_burst(site, count, rest=5)
    assert site.redis.client().llen("celery") >= count
    return found


def test_burst_of_1000_rows_is_faster_than_with_stock(postgres_site, figure: Callable[[str], None]):
    log_statements()
    stock_seconds, stock_statements = burst(postgres_site, 1000, STOCK, replicas=1)
    PeriodicTask.objects.all().delete()
    postgres_site.redis.admin.flushall()
    seconds, needed = burst(postgres_site, 1000, HA, replicas=3)
    figure(
        f"1,000 rows due in one minute\n"
        f"stock                {stock_seconds:6.1f} s, {stock_statements} statements\n"
        f"ha_beat, 3 replicas  {seconds:6.1f} s, {needed} statements"
    )
    assert seconds * 5 < stock_seconds
    assert needed * 10 < stock_statements


def test_leader_killed_in_a_burst_of_10000_rows_is_replaced_quickly(postgres_site, figure: Callable[[str], None]):
    log_statements()
    create_minutely(10_000)
    client = postgres_site.redis.client()
    with beats(postgres_site, replicas=2) as cluster:
        cluster.wait_for_leader()
        wait_for(lambda: len(cluster.ledger()) >= 10_000, 120, "the rows to be armed", 1)
        seconds, needed = count_burst(postgres_site, 10_000, rest=8)
        minute = next_minute(at_least=5)

        def of_minute() -> int:
            """Return the number of its messages: a slow machine may begin the next minute before it is done."""
            return sum(datetime.fromisoformat(m["ha_beat"]["scheduled_at"]) == minute for m in postgres_site.messages())

        sleep_until(minute - BEFORE)
        postgres_site.clear()
        wait_for(lambda: client.llen("celery") > 1000, 60, "the burst to begin", 0.001)
        cluster.wait_for_leader().kill()
        killed_at = time.monotonic()
        left = client.llen("celery")
        wait_for(lambda: client.llen("celery") > left, 60, "the next message", 0.001)
        silence = time.monotonic() - killed_at
        wait_for(lambda: of_minute() >= 10_000, 120, "10,000 messages", 0.5)
        time.sleep(1)
        assert of_minute() == 10_000
        figure(
            f"10,000 rows due in one minute: {seconds:.1f} s, {needed} statements; "
            f"leader killed in the middle of the next: {silence:.2f} s without a message"
        )
    assert silence < 5


def test_new_leader_of_10000_rows_sends_its_first_message_within_1_s(postgres_site, figure: Callable[[str], None]):
    """A standby computes the next instants in advance."""
    create_mixed(10_000)
    client = postgres_site.redis.client()
    from_kill, from_term = [], []
    with beats(postgres_site, replicas=2) as cluster:
        # More attempts if the machine is busy.
        while len(from_term) < 3 or (len(from_term) < 8 and min(from_term) >= 1):
            leader = cluster.wait_for_leader()
            cluster.wait_until_up()
            wait_for(lambda: len(cluster.ledger()) >= 10_000, 120, "the rows to be armed", 1)
            cluster.standbys()[0].wait_for_log("action=leader_seen")
            time.sleep(8)
            epoch = cluster.epoch()
            leader.kill()
            killed_at = time.monotonic()
            left = client.llen("celery")
            while cluster.epoch() == epoch:
                time.sleep(0.001)
            began_at = time.monotonic()
            wait_for(lambda left=left: client.llen("celery") > left, 60, "the next message", 0.001)
            now = time.monotonic()
            from_kill.append(now - killed_at)
            from_term.append(now - began_at)
            leader.start()
            wait_for(lambda: len(cluster.standbys()) == 1, 60, "standby")
    figure(
        f"10,000 rows, leader killed: the first message {median(from_term):.2f} s after the new term began "
        f"(of {len(from_term)}: {', '.join(f'{s:.2f}' for s in from_term)}), {median(from_kill):.2f} s after the kill"
    )
    assert min(from_term) < 1


def rows_read() -> tuple[int, int]:
    """Return how many rows of the periodic tasks PostgreSQL has read by passes over the table, and by indexes."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute(
            "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables "
            "WHERE relname = 'django_celery_beat_periodictask'"
        )
        found: tuple[int, int] = cursor.fetchone()
    return found


def cost_of_edits(count: int, edits: int = 4) -> tuple[float, float, float]:
    """Return rows read by passes and by indexes, and ms of the processor, for each of the edits in as many seconds."""
    PeriodicTask.objects.all()._raw_delete("default")
    create_minutely(count)
    clock = SteppedClock()
    reader = reader_of(clock)
    reader.turn()
    PeriodicTask.objects.update(date_changed=datetime.now(UTC) - timedelta(hours=1))
    with connection.cursor() as cursor:
        # As autovacuum does soon after many changes.
        cursor.execute("ANALYZE django_celery_beat_periodictask")
    task = PeriodicTask.objects.first()
    for _ in range(2):
        # The rows are compared after the first edit, and not again for five seconds.
        task.save()
        clock.ahead += 10
        reader.turn()
    passes, fetches, spent = 0, 0, 0.0
    for number in range(edits):
        task.priority = number
        task.save()
        clock.ahead += 1
        before, began = rows_read(), time.process_time()
        reader.turn()
        spent += time.process_time() - began
        after = rows_read()
        passes, fetches = passes + after[0] - before[0], fetches + after[1] - before[1]
        assert reader.table.entries[str(task.pk)].model.priority == number
    return passes / edits, fetches / edits, spent / edits * 1000


def test_cost_of_an_edit_does_not_depend_on_the_number_of_rows(postgres_site, figure: Callable[[str], None]):
    found = {count: cost_of_edits(count) for count in (2000, 20_000)}
    for count, (passes, fetches, ms) in found.items():
        figure(f"an edit among {count:6,} rows: {passes:.0f} rows by passes, {fetches:.0f} by indexes, {ms:.1f} ms")
    few, many = found.values()
    assert few[0] == many[0] == 0
    assert many[1] <= few[1] + 4
