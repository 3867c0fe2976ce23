"""Costs of a large schedule: start, takeover, memory, and the processor while nothing large is due.

    python -m tests.benchmarks.scale                    1,000 entries
    python -m tests.benchmarks.scale 1000 20000 100000  takes about three minutes

One entry runs every 0.2 s; the others are due once a year. Two replicas of ha_beat run, then one plain beat.
"""

import time
from collections.abc import Sequence

from tests.benchmarks.processes import memory, shares_of_a_core
from tests.benchmarks.results import OURS, STOCK, Benchmark, Result, arguments
from tests.faults.cluster import STOCK_SCHEDULER, BeatCluster
from tests.support.servers import RedisServer, wait_for

START, TAKEOVER = "start to first message (s)", "takeover after SIGKILL (s)"
LEADER, STANDBY, MEMORY = "leader (% of a core)", "standby (% of a core)", "memory (MB)"

_QUEUE = "celery"
_STEADY_SECONDS = 10.0


def _cluster(redis: RedisServer, entries: int, *, replicas: int, stock: bool) -> BeatCluster:
    redis.admin.flushall()
    yearly = (time.gmtime().tm_mon + 5) % 12 + 1
    return BeatCluster(
        redis.url,
        spec={"fast": {"every": 0.2}, "yearly": {"cron": f"0 0 1 {yearly} *", "n": entries}},
        replicas=replicas,
        scheduler=STOCK_SCHEDULER if stock else None,
        log_level="WARNING",
    )


def _next_message(redis: RedisServer) -> float:
    """Return the seconds until the queue grows."""
    began, count = time.monotonic(), redis.admin.llen(_QUEUE)
    wait_for(lambda: redis.admin.llen(_QUEUE) > count, 300, "a message", 0.002)
    return time.monotonic() - began


def measure_stock(redis: RedisServer, entries: int) -> Result:
    """Start plain beat and watch it."""
    cluster = _cluster(redis, entries, replicas=1, stock=True)
    try:
        cluster[0].start()
        start = _next_message(redis)
        time.sleep(2)
        [share] = shares_of_a_core([cluster[0].pid], _STEADY_SECONDS)
        return Result(STOCK, entries, {START: start, LEADER: share, MEMORY: memory(cluster[0].pid)})
    finally:
        cluster.close()


def measure_ours(redis: RedisServer, entries: int) -> Result:
    """Start a leader and a standby, watch both, and kill the leader."""
    cluster = _cluster(redis, entries, replicas=2, stock=False)
    leader, standby = cluster
    try:
        leader.start()
        start = _next_message(redis)
        standby.start()
        members = cluster.key("members")
        wait_for(lambda: redis.admin.hlen(members) >= 2, 300, "the standby", 0.1)
        time.sleep(5)
        leading, standing_by = shares_of_a_core([leader.pid, standby.pid], _STEADY_SECONDS)
        taken = memory(leader.pid)
        leader.kill()
        takeover = _next_message(redis)
        measures = {START: start, TAKEOVER: takeover, LEADER: leading, STANDBY: standing_by, MEMORY: taken}
        return Result(OURS, entries, measures)
    finally:
        cluster.close()


def benchmark(sizes: Sequence[int]) -> Benchmark:
    """Run the benchmark for each number of entries."""
    with RedisServer() as redis:
        results = [measure(redis, entries) for entries in sizes for measure in (measure_ours, measure_stock)]
    columns = (START, TAKEOVER, LEADER, STANDBY, MEMORY)
    return Benchmark("Size of the schedule", ["scale", *sizes], "entries", columns, results)


if __name__ == "__main__":
    print(benchmark(arguments(__doc__).parse_args().sizes).text())
