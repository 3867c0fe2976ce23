"""Time to enqueue many crontab entries that are due in the same minute: ha_beat with three replicas, then stock
`celery beat`, on one Redis.

    python -m tests.benchmarks.burst              1,000 entries
    python -m tests.benchmarks.burst 1000 3000

Each run uses the next whole minute that leaves time to start: 1,000 entries take about three minutes. The processor
time of all replicas during the burst is comparable on a busy machine too.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cluster import STOCK_SCHEDULER, BeatCluster
from tests.support.servers import RedisServer

#: Seconds that the replicas have to start, and a leader to arm the entries, before the minute.
_START = 12.0
_QUEUE = "celery"


@dataclass(frozen=True)
class Result:
    """Seconds from the due instant to the first and the last message, and processor seconds until then."""

    name: str
    entries: int
    first: float
    last: float
    processor: float


def enqueue_burst(redis: RedisServer, entries: int, *, stock: bool, timeout: float = 300.0) -> Result:
    """Start replicas with `count` crontab entries for one minute, wait for it, and time the messages.

    `timeout` is in seconds from the due instant. Raises AssertionError after that.
    """
    redis.admin.flushall()
    now = time.time()
    due_at = (now + _START) // 60 * 60 + 60
    name = "celery beat" if stock else "ha_beat, 3 replicas"
    with BeatCluster(
        redis.url,
        # Only of that minute: a slow beat must not count messages of the next one.
        spec={"cron": {"cron": f"{time.gmtime(due_at).tm_min} *", "n": entries}},
        replicas=1 if stock else 3,
        scheduler=STOCK_SCHEDULER if stock else None,
        # Log lines must not take time of either.
        log_level="WARNING",
    ) as cluster:
        while (left := due_at - time.time()) > 0:
            if left > 0.5 and redis.admin.llen(_QUEUE):
                raise AssertionError(f"{name}: messages {left:.1f} s before they are due")
            time.sleep(min(left, 0.2))
        spent_before = processor_seconds(cluster)
        first = 0.0
        while (count := int(redis.admin.llen(_QUEUE))) < entries:
            taken = time.time() - due_at
            first = first or (taken if count else 0.0)
            if taken > timeout:
                raise AssertionError(f"{name}: {count} of {entries} messages {timeout:g} s after they were due")
            time.sleep(0.005)
        last, spent = time.time() - due_at, processor_seconds(cluster) - spent_before
        return Result(name, entries, first or last, last, spent)


def processor_seconds(cluster: BeatCluster) -> float:
    """Return the processor seconds of the replicas."""
    ticks = 0
    for replica in cluster:
        fields = Path(f"/proc/{replica.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def compare(redis: RedisServer, entries: int) -> tuple[Result, Result]:
    """Measure ha_beat, then stock beat."""
    return enqueue_burst(redis, entries, stock=False), enqueue_burst(redis, entries, stock=True)


def table(pairs: Sequence[tuple[Result, Result]]) -> str:
    """Return the results, one per line, with the speed-up of the first of each pair."""
    lines = [f"{'entries':>7}  {'':<20} {'first message':>14} {'last message':>13} {'processor':>11}"]
    for ours, stock in pairs:
        lines += [
            f"{r.entries:>7}  {r.name:<20} {r.first:>12.3f} s {r.last:>11.3f} s {r.processor:>9.2f} s"
            for r in (ours, stock)
        ]
        share = ours.processor / stock.processor
        lines.append(f"{'':>7}  {stock.last / ours.last:.1f} times faster, with {share:.0%} of the processor time")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("entries", nargs="*", type=int, default=[1000], help="how many entries (default: 1000)")
    with RedisServer() as redis:
        for entries in parser.parse_args().entries:
            print(table([compare(redis, entries)]), flush=True)


if __name__ == "__main__":
    main()
