"""Space and traffic in Redis, and statements to the database, of a cluster in which nothing is due but one entry.

    python -m tests.benchmarks.capacity                          1,000 entries
    python -m tests.benchmarks.capacity 1000 20000 100000        takes about two minutes
    python -m tests.benchmarks.capacity 1000 --rows              rows of django-celery-beat, on PostgreSQL
    python -m tests.benchmarks.capacity --rate 200               processor time of 200 messages per second

A leader runs alone, then a standby starts: what is added is the standby's. One entry runs each second, the others are
due once a year.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.processes import memory, shares_of_a_core
from tests.benchmarks.results import OURS, Benchmark, Result
from tests.faults.cluster import BeatCluster
from tests.support.servers import RedisServer, wait_for

LEDGER, JOURNAL, MEMBER = "ledger (bytes per entry)", "journal (bytes per record)", "members (bytes per replica)"
LEADER_COMMANDS, STANDBY_COMMANDS = "leader (commands/s)", "standby (commands/s)"
LEADER_TRAFFIC, STANDBY_TRAFFIC = "leader (KB/s)", "standby (KB/s)"
STATEMENTS, STANDBY_STATEMENTS = "leader (statements/s)", "standby (statements/s)"
MESSAGES, LEADER, REDIS, MEMORY = "messages/s", "leader (% of a core)", "Redis (% of a core)", "leader's memory (MB)"

_SECONDS = 10.0


def _traffic(server: RedisServer, seconds: float) -> float:
    """Return the KB per second in and out."""

    def total() -> int:
        stats = server.admin.info("stats")
        return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])

    before = total()
    time.sleep(seconds)
    return (total() - before) / 1024 / seconds


def _bytes(server: RedisServer, key: str, count: int) -> float:
    return int(server.admin.memory_usage(key, samples=0) or 0) / max(count, 1)


def measure(server: RedisServer, entries: int) -> Result:
    """Start a leader, then a standby, and compare."""
    server.admin.flushall()
    yearly = (time.gmtime().tm_mon + 5) % 12 + 1
    spec: dict[str, dict[str, Any]] = {
        "each-second": {"every": 1.0},
        "yearly": {"cron": f"0 0 1 {yearly} *", "n": entries - 1},
    }
    cluster = BeatCluster(server.url, spec=spec, replicas=2, log_level="WARNING")
    try:
        cluster[0].start()
        wait_for(lambda: server.admin.hlen(cluster.key("ledger")) >= entries, 300, "the ledger", 0.1)
        time.sleep(5)
        alone = server.commands_per_second(_SECONDS), _traffic(server, _SECONDS)
        cluster[1].start()
        wait_for(lambda: server.admin.hlen(cluster.key("members")) >= 2, 300, "the standby", 0.1)
        time.sleep(5)
        both = server.commands_per_second(_SECONDS), _traffic(server, _SECONDS)
        journal, members = cluster.key("journal"), cluster.key("members")
        return Result(
            OURS,
            entries,
            {
                LEDGER: _bytes(server, cluster.key("ledger"), entries),
                JOURNAL: _bytes(server, journal, server.admin.xlen(journal)),
                MEMBER: _bytes(server, members, 2),
                LEADER_COMMANDS: alone[0],
                STANDBY_COMMANDS: both[0] - alone[0],
                LEADER_TRAFFIC: alone[1],
                STANDBY_TRAFFIC: both[1] - alone[1],
            },
        )
    finally:
        cluster.close()


def benchmark(sizes: Sequence[int], show: Callable[[str], object] = print) -> Benchmark:
    """Measure space and traffic in Redis for each number of entries."""
    command = " ".join(["python -m tests.benchmarks.capacity", *map(str, sizes)])
    columns = (LEDGER, JOURNAL, MEMBER, LEADER_COMMANDS, STANDBY_COMMANDS, LEADER_TRAFFIC, STANDBY_TRAFFIC)
    found = Benchmark("Space and traffic in Redis", command, "entries", columns)
    with RedisServer() as server:
        found.results += [measure(server, entries) for entries in sizes]
    show(found.text())
    return found


def benchmark_rate(rate: int, show: Callable[[str], object] = print) -> Benchmark:
    """Measure the processor time at a rate of messages per second, from as many entries."""
    command = f"python -m tests.benchmarks.capacity --rate {rate}"
    found = Benchmark("Steady load", command, "entries", (MESSAGES, LEADER, REDIS, MEMORY))
    with RedisServer() as server:
        spec = {"each": {"every": 1.0, "n": rate}}
        with BeatCluster(server.url, spec=spec, replicas=1, log_level="WARNING") as cluster:
            wait_for(lambda: server.admin.llen("celery") > rate, 60, "messages", 0.1)
            before, since = server.admin.llen("celery"), time.monotonic()
            pids = [cluster[0].pid, int(server.admin.info("server")["process_id"])]
            leader, redis_share = shares_of_a_core(pids, _SECONDS)
            sent = (server.admin.llen("celery") - before) / (time.monotonic() - since)
            measures = {MESSAGES: sent, LEADER: leader, REDIS: redis_share, MEMORY: memory(cluster[0].pid)}
    found.results.append(Result(OURS, rate, measures))
    show(found.text())
    return found


def benchmark_rows(sizes: Sequence[int], show: Callable[[str], object] = print) -> Benchmark:
    """Count the statements to PostgreSQL while no row is due and none is edited."""
    from tests.benchmarks.rows import postgres_site, statements

    command = " ".join(["python -m tests.benchmarks.capacity", *map(str, sizes), "--rows"])
    found = Benchmark("Polls of the database", command, "rows", (STATEMENTS, STANDBY_STATEMENTS))
    with postgres_site() as site:
        # Django is set up by now.
        from django_celery_beat.models import PeriodicTask, PeriodicTasks

        from tests.integration.django.beats import beats
        from tests.integration.django.rows import cron

        for rows in sizes:
            PeriodicTask.objects.all().delete()
            site.redis.admin.flushall()
            yearly = cron(
                minute="0", hour="0", day_of_month="1", month_of_year=str((time.gmtime().tm_mon + 5) % 12 + 1)
            )
            PeriodicTask.objects.bulk_create(
                [PeriodicTask(name=f"row {number}", task="tick", crontab=yearly) for number in range(rows)]
            )
            PeriodicTasks.update_changed()
            rates = []
            for replicas in (1, 2):
                with beats(site, replicas=replicas) as cluster:
                    cluster.wait_for_leader()
                    wait_for(lambda: len(cluster.ledger()) >= rows, 120, "the rows to be armed", 1)  # noqa: B023
                    time.sleep(10)
                    before = statements(site)
                    time.sleep(_SECONDS)
                    rates.append((statements(site) - before) / _SECONDS)
            found.results.append(Result(OURS, rows, {STATEMENTS: rates[0], STANDBY_STATEMENTS: rates[1] - rates[0]}))
    show(found.text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", type=int, default=[1000], help="how many entries (default: 1000)")
    parser.add_argument("--rows", action="store_true", help="rows of django-celery-beat")
    parser.add_argument("--rate", type=int, help="messages per second")
    options = parser.parse_args()
    if options.rate:
        benchmark_rate(options.rate)
    else:
        (benchmark_rows if options.rows else benchmark)(options.entries)


if __name__ == "__main__":
    main()
