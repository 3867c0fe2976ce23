"""Deliberate differences from Celery's beat: a test covers each line of the list in the docs.

Celery's own tests of ``celery.beat`` pass with :class:`HAScheduler`, except for those in :data:`NOT_PASSED`.
"""

import importlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.beat import Scheduler

from ha_beat.scheduler import HAScheduler
from tests.support.schedulers import leads
from tests.support.servers import RedisServer, wait_for

ROOT = Path(__file__).parents[3]

#: Line of the docs, and the test that covers it: a module under `tests`, and the test's name.
HELD_BY = {
    "run state": ("integration.scheduler.test_beat_command", "beat_writes_no_schedule_file_and_ends_cleanly_by_signal"),
    "overdue": ("unit.schedule.test_misfire", "each_instant_gets_exactly_one_verdict"),
    "intervals": ("integration.scheduler.test_differences", "interval_keeps_its_grid"),
    "outage": ("faults.test_libraries", "libraries_work_on_after_an_outage_of_the_broker"),
    "task id": ("integration.scheduler.test_hooks", "one_occurrence_yields_several_messages"),
    "header": ("integration.dispatch.test_equality", "message_equals_that_of_stock_beat"),
    "building": ("integration.leader.test_kept_messages", "message_is_built_once_although_its_send_fails"),
    "declining": ("integration.dispatch.test_bad_entries", "declining_task_is_skipped_quietly"),
    "hooks": ("unit.scheduler.test_scheduler_class", "method_that_is_never_called_is_refused"),
    "`tick`": ("integration.scheduler.test_differences", "tick_sends_all_that_is_due_and_waits_itself"),
    "size": ("unit.dispatch.test_message", "large_message_is_refused_before_its_envelope_is_made"),
    "errors": ("integration.scheduler.test_differences", "close_does_not_raise_although_sync_does"),
    "merging": ("unit.scheduler.test_scheduler_class", "schedule_has_the_entries_that_celery_adds"),
}

#: Tests in the `t/unit/app/test_beat.py` of Celery 5.7.0 that expect something else, and which difference that is.
#: `tests/celery_tests.py` runs them.
NOT_PASSED = {
    # They check what `tick` returns, or the heap.
    "test_due_tick": "`tick`",
    "test_due_tick_returns_delay_when_heap_top_changed": "`tick`",
    "test_due_tick_SchedulingError": "`tick`",
    "test_tick_survives_entry_failing_in_populate_heap": "`tick`",
    "test_tick_survives_entry_failing_when_due": "`tick`",
    "test_pending_left_10_milliseconds_tick": "`tick`",
    "test_honors_max_interval": "`tick`",
    "test_ticks_microseconds": "`tick`",
    "test_ticks_schedule_change": "`tick`",
    "test_schedule_no_remain": "`tick`",
    "test_not_due_top_entry_is_rescheduled_behind_due_entry": "`tick`",
    "test_reheap_skipped_when_is_due_mutates_heap": "`tick`",
    "test_tick_uses_fresh_time_when_heap_top_changes": "`tick`",
    "test_tick_daily_relative_spring_forward": "`tick`",
    # They expect a message after the first call, and stop the clock in another year.
    "test_tick_solar_across_dst": "`tick`",
    "test_tick_dispatches_missed_cron_within_deadline_non_uniform": "`tick`",
    "test_tick_dispatches_missed_cron_on_deadline_boundary_non_uniform": "`tick`",
    # They replace `_when` and `connection`, which are never used. Such a class is refused.
    "test_populate_heap": "hooks",
    "test_close_releases_plain_subclass_attributes": "hooks",
    # They expect `close` to raise.
    "test_close_releases_resources_when_sync_fails": "errors",
    "test_close_prioritizes_sync_over_unexpected_release_error": "errors",
    # Not a difference: it expects a subclass of the scheduler that was replaced.
    "test_start": "",
}


def test_each_test_of_celery_that_does_not_pass_has_its_reason():
    assert {reason for reason in NOT_PASSED.values() if reason} <= set(HELD_BY)


def test_each_difference_on_the_page_is_held_by_a_test():
    _, _, section = (ROOT / "docs" / "migrating.md").read_text().partition("{ #what-differs }")
    section, _, _ = section.partition("\n## ")
    assert set(re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)) == set(HELD_BY)
    for module, name in HELD_BY.values():
        try:
            found = importlib.import_module(f"tests.{module}")
        except pytest.skip.Exception:
            continue  # a library that its tests need is not installed
        assert hasattr(found, f"test_{name}"), f"{module} has no test_{name}"


@pytest.fixture
def make(shared_redis: RedisServer) -> Iterator[Callable[..., HAScheduler]]:
    made: list[HAScheduler] = []

    def scheduler(**entries: dict[str, Any]) -> HAScheduler:
        app = Celery("differences", broker=shared_redis.url, set_as_current=False)
        app.conf.beat_schedule = {name: {"task": "t", **entry} for name, entry in entries.items()}
        made.append(HAScheduler(app))
        return made[-1]

    yield scheduler
    for each in (*made, *made):
        each.close()


def test_tick_sends_all_that_is_due_and_waits_itself(make, shared_redis: RedisServer):
    """Celery's `tick` sends one entry, and returns how long to sleep."""
    scheduler = make(**{f"e{n}": {"schedule": 0.5} for n in range(5)})
    wait_for(lambda: leads(scheduler) and shared_redis.admin.llen("celery"), 10, "messages")
    assert shared_redis.admin.llen("celery") == 5
    assert 0 < scheduler.tick() < 0.001
    assert scheduler._heap is None


def test_interval_keeps_its_grid(make, shared_redis: RedisServer):
    scheduler = make(e={"schedule": 0.3})
    wait_for(lambda: leads(scheduler) and shared_redis.admin.llen("celery") > 3, 10, "messages")
    raw: Any = shared_redis.admin.lrange("celery", 0, -1)
    instants = sorted(re.findall(r'"scheduled_at": "([^"]+)"', " ".join(raw)))
    micros = [round(float(at[17:26]) * 1e6) for at in instants]
    assert {(later - first) % 300_000 for first, later in itertools.pairwise(micros)} == {0}


def test_close_does_not_raise_although_sync_does(make, monkeypatch):
    scheduler = make()
    monkeypatch.setattr(Scheduler, "sync", Mock(side_effect=RuntimeError("the store is away")))
    wait_for(lambda: leads(scheduler), 10, "a term")
    scheduler.schedule_source.unsynced = True
    scheduler.close()
    scheduler.sync()
