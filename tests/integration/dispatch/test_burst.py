"""A burst costs a trip for each batch, not for each entry, and one dispatch costs the same in a large schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.beat import ScheduleEntry
from kombu import Exchange, Queue

from ha_beat.scheduler import HAScheduler
from ha_beat.store.keys import Keys
from tests.integration.dispatch.conftest import Bench
from tests.support.dispatchers import app_dispatcher


def test_a_burst_of_500_needs_a_handful_of_trips(make_bench: Callable[..., Bench]):
    """No round trip for an entry: neither by script nor by any other command of kombu's or of ours."""
    bench = make_bench({"ha_beat_batch_size": 100})
    admin = bench.server.admin
    admin.config_resetstat()
    bench.run_scheduler({f"burst-{n}": {"task": "good"} for n in range(500)})
    stats: Any = admin.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): values["calls"] for name, values in stats.items()}
    assert admin.llen("celery") == 500
    assert calls["lpush"] == 500
    # What a script calls is counted too; trips are what the bench's own questions (hgetall) leave.
    trips = {
        name: count for name, count in calls.items() if name in ("evalsha", "eval", "multi", "exec", "llen", "sadd")
    }
    assert trips["evalsha"] < 60, calls
    assert sum(trips.values()) < 100, calls
    assert calls.get("smembers", 0) < 50, calls


def test_a_burst_binds_its_queue_once(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch):
    """kombu copies queue and exchange for each message, before it sees that they are declared: a fifth of its time."""
    bench, bound = make_bench(), []
    bind = Queue.bind
    monkeypatch.setattr(Queue, "bind", lambda queue, channel: bound.append(queue.name) or bind(queue, channel))
    bench.run_scheduler({f"burst-{n}": {"task": "good"} for n in range(50)})
    assert bench.server.admin.llen("celery") == 50
    assert len(bound) <= 2, bound


def test_a_queue_that_goes_with_its_last_worker_is_declared_each_time(make_bench: Callable[..., Bench]):
    """Whoever keeps a declaration in mind must not keep this one: the binding may be gone by the next message."""
    bench = make_bench({"task_queues": [Queue("passing", Exchange("passing"), "passing", auto_delete=True)]})
    dispatcher = app_dispatcher(bench.app, Keys("messages"))
    entry = ScheduleEntry("passing", "good", schedule=60, app=bench.app)
    for _ in range(2):
        assert dispatcher.prepare(entry, [], {}, {"queue": "passing"})
        bench.server.admin.delete("_kombu.binding.passing")


def seconds_per_dispatch(bench: Bench, entries: int, runs: int = 40) -> float:
    """Of one frequent entry, in a schedule of so many others that are not due."""
    bench.server.admin.flushall()
    now = datetime.now(UTC)
    bench.app.conf.beat_schedule = {
        **{f"rare-{n}": {"task": "good", "schedule": timedelta(days=1), "last_run_at": now} for n in range(entries)},
        "often": {"task": "good", "schedule": timedelta(milliseconds=10), "last_run_at": now},
    }
    scheduler = HAScheduler(bench.app, max_interval=0.001)
    try:
        deadline = time.monotonic() + 40
        while bench.server.admin.llen("celery") < 3:
            scheduler.tick()
            assert time.monotonic() < deadline
        costs = []
        for _ in range(runs):
            time.sleep(0.011)
            began = time.thread_time()
            scheduler.tick()
            costs.append(time.thread_time() - began)
        return sorted(costs)[runs // 2]
    finally:
        scheduler.close()
        scheduler.close()


def test_a_dispatch_costs_the_same_among_ten_thousand_entries(make_bench: Callable[..., Bench]):
    """Stock beat compares the whole schedule at every entry that it sends."""
    bench = make_bench()
    small, large = seconds_per_dispatch(bench, 100), seconds_per_dispatch(bench, 10_000)
    assert large < 5 * small + 0.002, f"{small * 1e6:.0f} µs among 100, {large * 1e6:.0f} µs among 10,000"
    print(f"{small * 1e6:.0f} µs among 100, {large * 1e6:.0f} µs among 10,000")
