"""Cost of a burst and of one dispatch in a large schedule."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.beat import ScheduleEntry
from kombu import Exchange, Queue

from ha_beat.scheduler import HAScheduler
from ha_beat.store.keys import Keys
from tests.integration.dispatch.conftest import MakeComparison, RedisComparison
from tests.support.dispatchers import app_dispatcher
from tests.support.schedulers import closing


def test_burst_of_500_needs_few_round_trips(make_comparison: MakeComparison):
    """No script and no other command makes a round trip per entry."""
    comparison = make_comparison({"ha_beat_batch_size": 100})
    admin = comparison.server.admin
    admin.config_resetstat()
    comparison.run_scheduler({f"burst-{n}": {"task": "good"} for n in range(500)})
    stats: Any = admin.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): values["calls"] for name, values in stats.items()}
    assert admin.llen("celery") == 500
    # One command pushes the messages of a batch.
    assert calls["lpush"] < 60, calls
    # Redis also counts the commands inside scripts, so only these are round trips.
    trips = sum(calls.get(name, 0) for name in ("evalsha", "eval", "multi", "exec", "llen", "sadd"))
    assert calls["evalsha"] < 60, calls
    assert trips < 100, calls
    assert calls.get("smembers", 0) < 50, calls


def test_burst_binds_its_queue_once(make_comparison: MakeComparison, monkeypatch: pytest.MonkeyPatch):
    """kombu copies queue and exchange for each message before it checks whether they are declared."""
    comparison, bound = make_comparison(), []
    bind = Queue.bind
    monkeypatch.setattr(Queue, "bind", lambda queue, channel: bound.append(queue.name) or bind(queue, channel))
    comparison.run_scheduler({f"burst-{n}": {"task": "good"} for n in range(50)})
    assert comparison.server.admin.llen("celery") == 50
    assert len(bound) <= 2, bound


def test_auto_delete_queue_is_declared_for_each_message(make_comparison: MakeComparison):
    """Its binding may be deleted before the next message."""
    comparison = make_comparison({"task_queues": [Queue("passing", Exchange("passing"), "passing", auto_delete=True)]})
    dispatcher = app_dispatcher(comparison.app, Keys("messages"))
    entry = ScheduleEntry("passing", "good", schedule=60, app=comparison.app)
    for _ in range(2):
        assert dispatcher.prepare(entry, [], {}, {"queue": "passing"})
        comparison.server.admin.delete("_kombu.binding.passing")


def seconds_per_dispatch(comparison: RedisComparison, entries: int, runs: int = 40) -> float:
    """Return the median time of a dispatch of one frequent entry among ``entries`` that are not due."""
    comparison.server.admin.flushall()
    now = datetime.now(UTC)
    comparison.app.conf.beat_schedule = {
        **{f"rare-{n}": {"task": "good", "schedule": timedelta(days=1), "last_run_at": now} for n in range(entries)},
        "often": {"task": "good", "schedule": timedelta(milliseconds=10), "last_run_at": now},
    }
    scheduler = HAScheduler(comparison.app, max_interval=0.001)
    with closing(scheduler):
        deadline = time.monotonic() + 120
        while comparison.server.admin.llen("celery") < 3:
            scheduler.tick()
            assert time.monotonic() < deadline
        costs = []
        for _ in range(runs):
            time.sleep(0.011)
            began = time.thread_time()
            scheduler.tick()
            costs.append(time.thread_time() - began)
        return sorted(costs)[runs // 2]


def test_dispatch_costs_the_same_in_a_large_schedule(make_comparison: MakeComparison):
    """Stock beat compares the whole schedule for each entry that it sends."""
    comparison = make_comparison()
    small, large = seconds_per_dispatch(comparison, 100), seconds_per_dispatch(comparison, 10_000)
    assert large < 5 * small + 0.002, f"{small * 1e6:.0f} µs among 100, {large * 1e6:.0f} µs among 10,000"
    print(f"{small * 1e6:.0f} µs among 100, {large * 1e6:.0f} µs among 10,000")
