"""Time to enqueue many crontab entries that are due in the same minute.

It runs ha_beat with three replicas, the floor (a redis-py pipeline that pushes the same messages), plain `celery beat`,
and redbeat if it is installed.

    python -m tests.benchmarks.burst                         1,000 entries on Redis
    python -m tests.benchmarks.burst 1000 10000              takes about five minutes
    python -m tests.benchmarks.burst --broker rabbitmq       the lease in Redis, the messages in RabbitMQ
    python -m tests.benchmarks.burst 10000 --limit 300       plain beat and redbeat have five minutes instead of 30 s

Each run uses the next whole minute that leaves time to start. The processor time of all replicas during the burst is
comparable on a busy machine too.
"""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kombu

from tests.benchmarks.processes import processor_seconds
from tests.benchmarks.results import FLOOR, OURS, REDBEAT, STOCK, Benchmark, Measure, Result, Unfinished, arguments
from tests.faults.cluster import STOCK_SCHEDULER, BeatCluster
from tests.support.servers import RabbitMQ, RedisServer

FIRST, LAST, PROCESSOR = "first message (s)", "last message (s)", "processor (s)"

#: Seconds from the due instant after which another scheduler than ha_beat is stopped.
LIMIT = 30.0

#: Most entries for redbeat.
_REDBEAT_ENTRIES = 1000

_QUEUE = "celery"
_SCHEDULERS = {OURS: None, STOCK: STOCK_SCHEDULER, REDBEAT: "redbeat.RedBeatScheduler"}


class Queue:
    """Queue of a broker that can be counted and cleared."""

    def __init__(self, redis: RedisServer, rabbitmq: RabbitMQ | None) -> None:
        self.redis = redis
        self.rabbitmq = rabbitmq
        self.url = rabbitmq.url if rabbitmq else redis.url
        self._connection: kombu.Connection | None = None

    def clear(self) -> None:
        self.redis.admin.flushall()
        if self.rabbitmq is not None:
            self._channel().queue_declare(_QUEUE, durable=True, auto_delete=False)
            self._channel().queue_purge(_QUEUE)

    def __len__(self) -> int:
        if self.rabbitmq is None:
            return int(self.redis.admin.llen(_QUEUE))
        return int(self._channel().queue_declare(_QUEUE, passive=True).message_count)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.release()

    def _channel(self) -> Any:
        if self._connection is None:
            self._connection = kombu.Connection(self.url)
        return self._connection.default_channel


@contextmanager
def queue_on(broker: str) -> Iterator[Queue]:
    """Start the servers and yield the queue. ``broker`` is ``redis`` or ``rabbitmq``."""
    with RedisServer() as redis:
        if broker == "redis":
            yield Queue(redis, None)
            return
        with RabbitMQ() as rabbitmq:
            queue = Queue(redis, rabbitmq)
            try:
                yield queue
            finally:
                queue.close()


def enqueue_burst(queue: Queue, entries: int, side: str, *, limit: float = 300.0) -> Result:
    """Start replicas with crontab entries for one minute, wait for it, and time the messages.

    ``limit`` is in seconds from the due instant. A run that has not ended by then is stopped.
    """
    queue.clear()
    now = time.time()
    # The replicas have to start, and a leader to arm the entries, before the minute.
    due_at = (now + 12 + entries / 1000) // 60 * 60 + 60
    scheduler = _SCHEDULERS[side]
    with BeatCluster(
        queue.url,
        # Only that minute: a slow beat must not count messages of the next one.
        spec={"cron": {"cron": f"{time.gmtime(due_at).tm_min} *", "n": entries}},
        replicas=3 if side == OURS else 1,
        lease_urls=queue.redis.url,
        admin_url=queue.redis.url,
        scheduler=scheduler,
        config={"redbeat_redis_url": queue.redis.url} if side == REDBEAT else None,
        # Log lines would take time.
        log_level="WARNING",
    ) as cluster:
        while (left := due_at - time.time()) > 0:
            if left > 0.5 and len(queue):
                raise AssertionError(f"{side}: messages {left:.1f} s before they are due")
            time.sleep(min(left, 0.2))
        pids = [replica.pid for replica in cluster]
        spent_before = processor_seconds(*pids)
        first = 0.0
        while (count := len(queue)) < entries:
            taken = time.time() - due_at
            first = first or (taken if count else 0.0)
            if taken > limit:
                break
            time.sleep(0.005)
        taken, spent = time.time() - due_at, processor_seconds(*pids) - spent_before
        last: Measure = taken if count >= entries else Unfinished(taken, count, entries)
        return Result(side, entries, {FIRST: first or taken, LAST: last, PROCESSOR: spent})


def floor(queue: Queue, entries: int) -> Result:
    """Push the messages of the last burst in Redis again, by a plain pipeline."""
    messages = queue.redis.admin.lrange(_QUEUE, 0, -1)
    queue.redis.admin.delete(_QUEUE)
    began, spent_before = time.perf_counter(), time.process_time()
    pipeline = queue.redis.admin.pipeline(transaction=False)
    for message in messages:
        pipeline.lpush(_QUEUE, message)
    pipeline.execute()
    taken, spent = time.perf_counter() - began, time.process_time() - spent_before
    return Result(FLOOR, entries, {LAST: taken, PROCESSOR: spent})


def compare(queue: Queue, entries: int, limit: float = LIMIT, *, redbeat: bool = True) -> list[Result]:
    """Measure ha_beat and plain beat. On Redis, measure also the floor, and redbeat if it is wanted and installed."""
    results = [enqueue_burst(queue, entries, OURS)]
    if not queue.rabbitmq:
        results.append(floor(queue, entries))
    results.append(enqueue_burst(queue, entries, STOCK, limit=limit))
    redbeat = redbeat and not queue.rabbitmq and entries <= _REDBEAT_ENTRIES
    if redbeat and importlib.util.find_spec("redbeat"):
        results.append(enqueue_burst(queue, entries, REDBEAT, limit=limit))
    return results


def benchmark(sizes: Sequence[int], broker: str = "redis", limit: float = LIMIT, *, redbeat: bool = True) -> Benchmark:
    """Run the benchmark for each number of entries."""
    with queue_on(broker) as queue:
        results = [result for entries in sizes for result in compare(queue, entries, limit, redbeat=redbeat)]
    words = ["burst", *sizes, "--broker", broker, "--limit", f"{limit:g}"]
    return Benchmark(f"Entries due in one minute, on {broker}", words, "entries", (FIRST, LAST, PROCESSOR), results)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds for the others (default: {LIMIT:g})")
    options = parser.parse_args()
    print(benchmark(options.sizes, options.broker, options.limit).text())


if __name__ == "__main__":
    main()
