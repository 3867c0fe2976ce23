"""Many rows of django-celery-beat due in the same minute, on PostgreSQL: ha_beat with three replicas, then stock
`DatabaseScheduler`.

    python -m tests.benchmarks.rows                    1,000 rows
    python -m tests.benchmarks.rows 1000 10000         takes about five minutes
    python -m tests.benchmarks.rows 10000 --limit 600  give either ten minutes instead of 30 s

Measures the seconds from the minute to the last message, and the statements sent to PostgreSQL from just before the
minute until all rows were written. Stock's time grows with the square of the rows: if it exceeds the limit, the table
shows its progress.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from tests.benchmarks.results import OURS, STOCK, Benchmark, Measure, Result, Unfinished, arguments
from tests.integration.django.conftest import Site, migrate, use
from tests.support.servers import Postgres, RedisServer, wait_for

LAST, STATEMENTS = "last message (s)", "statements"

#: Seconds from the minute after which a run is stopped.
LIMIT = 30.0

_QUEUE = "celery"
_STOCK = "django_celery_beat.schedulers:DatabaseScheduler"
_HA = "ha_beat.django.schedulers:HADatabaseScheduler"


@contextmanager
def postgres_site() -> Iterator[Site]:
    with RedisServer() as redis, Postgres() as server:
        use(server.django_database)
        migrate()
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET log_statement = 'all'")
            cursor.execute("SELECT pg_reload_conf()")
        yield Site(server.django_database, redis, server)
        use({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})


def statements(site: Site) -> int:
    """Return the number of statements so far, including those of this process."""
    assert site.server is not None
    log = (site.server.directory / "server.log").read_text(errors="replace")
    return log.count("LOG:  statement:") + log.count("LOG:  execute ")


def add_rows(site: Site, rows: int, **crontab: str) -> None:
    """Replace the schedule by rows with this crontab."""
    from django.db import connection
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    from tests.integration.django.rows import cron

    with connection.cursor() as cursor:
        # The model's delete() writes the mark of changes twice for each row.
        cursor.execute("TRUNCATE django_celery_beat_periodictask")
    site.redis.admin.flushall()
    when = cron(**crontab)
    PeriodicTask.objects.bulk_create(
        [PeriodicTask(name=f"row {number}", task="tick", crontab=when) for number in range(rows)]
    )
    PeriodicTasks.update_changed()


def burst(site: Site, rows: int, *, stock: bool, limit: float) -> Result:
    """Measure one burst. ``limit`` is in seconds from the minute."""
    from tests.integration.django.beats import beats

    start = timedelta(seconds=20 + rows / 400)
    minute = (datetime.now(UTC) + start).replace(second=0, microsecond=0) + timedelta(minutes=1)
    # Only that minute: a slow beat must not count messages of the next one.
    add_rows(site, rows, minute=str(minute.minute))
    client = site.redis.client()
    # Log lines would take time.
    with beats(site, replicas=1 if stock else 3, scheduler=_STOCK if stock else _HA, log_level="WARNING") as cluster:
        if not stock:
            cluster.wait_for_leader()
            wait_for(lambda: len(cluster.ledger()) >= rows, 120, "the rows to be armed", 1)
        time.sleep(max((minute - datetime.now(UTC)).total_seconds() - 2, 0))
        assert datetime.now(UTC) < minute, "the replicas were not up in time"
        assert client.llen(_QUEUE) == 0
        before = statements(site)
        while client.llen(_QUEUE) < rows and (datetime.now(UTC) - minute).total_seconds() < limit:
            time.sleep(0.01)
        seconds, sent = (datetime.now(UTC) - minute).total_seconds(), int(client.llen(_QUEUE))
        if sent >= rows:
            # Stock beat writes the rows after the last message, on its main thread.
            time.sleep(10 if stock else 5)
        asked = statements(site) - before
    last: Measure = seconds if sent >= rows else Unfinished(seconds, sent, rows)
    return Result(STOCK if stock else OURS, rows, {LAST: last, STATEMENTS: float(asked)})


def benchmark(sizes: Sequence[int], limit: float = LIMIT) -> Benchmark:
    """Run the benchmark for each number of rows. A run ends `limit` seconds after the minute at the latest."""
    title, words = (
        "Rows of django-celery-beat due in one minute, on PostgreSQL",
        ["rows", *sizes, "--limit", f"{limit:g}"],
    )
    found = Benchmark(title, words, "rows", (LAST, STATEMENTS))
    for rows in sizes:
        with postgres_site() as site:
            found.results += [burst(site, rows, stock=stock, limit=limit) for stock in (False, True)]
    return found


def main() -> None:
    parser = arguments(__doc__, "rows")
    parser.add_argument("--limit", type=float, default=LIMIT)
    options = parser.parse_args()
    print(benchmark(options.sizes, options.limit).text())


if __name__ == "__main__":
    main()
