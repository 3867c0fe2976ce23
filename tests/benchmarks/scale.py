"""Costs of a large schedule: start, takeover, memory, and the processor while nothing large is due.

    python -m tests.benchmarks.scale                    1,000 entries
    python -m tests.benchmarks.scale 1000 20000 100000  takes about three minutes

One entry runs every 0.2 s; the others are due once a year. Two replicas of ha_beat run, then one plain beat.
"""

import argparse
import time
from collections.abc import Callable, Sequence

from tests.benchmarks.processes import memory, shares_of_a_core
from tests.benchmarks.results import OURS, STOCK, Benchmark, Result
from tests.faults.cluster import STOCK_SCHEDULER, BeatCluster, Replica
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


def _next_message(redis: RedisServer, timeout: float) -> float:
    """Return the seconds until the queue grows."""
    began, count = time.monotonic(), redis.admin.llen(_QUEUE)
    wait_for(lambda: redis.admin.llen(_QUEUE) > count, timeout, "a message", 0.002)
    return time.monotonic() - began


def _start(replica: Replica, redis: RedisServer) -> float:
    replica.start()
    return _next_message(redis, 300)


def measure_stock(redis: RedisServer, entries: int) -> Result:
    """Start plain beat and watch it."""
    cluster = _cluster(redis, entries, replicas=1, stock=True)
    try:
        start = _start(cluster[0], redis)
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
        start = _start(leader, redis)
        standby.start()
        members = cluster.key("members")
        wait_for(lambda: redis.admin.hlen(members) >= 2, 300, "the standby", 0.1)
        time.sleep(5)
        leading, standing_by = shares_of_a_core([leader.pid, standby.pid], _STEADY_SECONDS)
        taken = memory(leader.pid)
        leader.kill()
        takeover = _next_message(redis, 300)
        measures = {START: start, TAKEOVER: takeover, LEADER: leading, STANDBY: standing_by, MEMORY: taken}
        return Result(OURS, entries, measures)
    finally:
        cluster.close()


def benchmark(sizes: Sequence[int], show: Callable[[str], object] = print) -> Benchmark:
    """Run the benchmark for each number of entries."""
    command = " ".join(["python -m tests.benchmarks.scale", *map(str, sizes)])
    found = Benchmark("Size of the schedule", command, "entries", (START, TAKEOVER, LEADER, STANDBY, MEMORY))
    with RedisServer() as redis:
        for entries in sizes:
            found.results += [measure_ours(redis, entries), measure_stock(redis, entries)]
    show(found.text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("entries", nargs="*", type=int, default=[1000], help="how many entries (default: 1000)")
    benchmark(parser.parse_args().entries)


if __name__ == "__main__":
    main()
