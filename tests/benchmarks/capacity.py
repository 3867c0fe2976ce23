"""Space and traffic in Redis, and statements to the database, of a cluster in which nothing is due but one entry.

    python -m tests.benchmarks.capacity                          1,000 entries
    python -m tests.benchmarks.capacity 1000 20000 100000        takes about two minutes
    python -m tests.benchmarks.capacity 1000 --rows              rows of django-celery-beat, on PostgreSQL
    python -m tests.benchmarks.capacity --rate 200               processor time of 200 messages per second

A leader runs alone, then with a standby. The difference is the standby's share. One entry runs each second, the others
are due once a year.
"""

import time
from collections.abc import Sequence
from typing import Any

from tests.benchmarks.processes import memory, shares_of_a_core
from tests.benchmarks.results import OURS, Benchmark, Result, arguments
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


def _distant_month() -> int:
    return (time.gmtime().tm_mon + 5) % 12 + 1


def measure(server: RedisServer, entries: int) -> Result:
    """Start a leader, then a standby, and compare."""
    server.admin.flushall()
    yearly = {"cron": f"0 0 1 {_distant_month()} *", "n": entries - 1}
    spec: dict[str, dict[str, Any]] = {"each-second": {"every": 1.0}, "yearly": yearly}
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


def benchmark(sizes: Sequence[int]) -> Benchmark:
    """Measure space and traffic in Redis for each number of entries."""
    columns = (LEDGER, JOURNAL, MEMBER, LEADER_COMMANDS, STANDBY_COMMANDS, LEADER_TRAFFIC, STANDBY_TRAFFIC)
    with RedisServer() as server:
        results = [measure(server, entries) for entries in sizes]
    return Benchmark("Space and traffic in Redis", ["capacity", *sizes], "entries", columns, results)


def benchmark_rate(rate: int) -> Benchmark:
    """Measure the processor time at a rate of messages per second, from as many entries."""
    spec = {"each": {"every": 1.0, "n": rate}}
    with (
        RedisServer() as server,
        BeatCluster(server.url, spec=spec, replicas=1, log_level="WARNING") as cluster,
    ):
        wait_for(lambda: server.admin.llen("celery") > rate, 60, "messages", 0.1)
        before, since = server.admin.llen("celery"), time.monotonic()
        leader, redis = shares_of_a_core([cluster[0].pid, server.pid], _SECONDS)
        sent = (server.admin.llen("celery") - before) / (time.monotonic() - since)
        measures = {MESSAGES: sent, LEADER: leader, REDIS: redis, MEMORY: memory(cluster[0].pid)}
    return Benchmark(
        "Steady load", ["capacity", "--rate", rate], "entries", tuple(measures), [Result(OURS, rate, measures)]
    )


def benchmark_rows(sizes: Sequence[int]) -> Benchmark:
    """Count the statements to PostgreSQL while no row is due and none is edited."""
    from tests.benchmarks.rows import add_rows, postgres_site, statements

    found = Benchmark("Polls of the database", ["capacity", *sizes, "--rows"], "rows", (STATEMENTS, STANDBY_STATEMENTS))
    with postgres_site() as site:
        from tests.integration.django.beats import beats  # Django is set up by now

        for rows in sizes:
            add_rows(site, rows, minute="0", hour="0", day_of_month="1", month_of_year=str(_distant_month()))
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
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", action="store_true", help="rows of django-celery-beat")
    parser.add_argument("--rate", type=int, help="messages per second")
    options = parser.parse_args()
    if options.rate:
        found = benchmark_rate(options.rate)
    else:
        found = (benchmark_rows if options.rows else benchmark)(options.sizes)
    print(found.text())


if __name__ == "__main__":
    main()
