"""Due instants of rows and their starting points, compared with django-celery-beat's."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from django_celery_beat.schedulers import ModelEntry

from ha_beat.django.entries import RowEntry, UnreadableRow
from ha_beat.schedule.misfire import DueInstants, newest_due
from ha_beat.schedule.occurrence import FOREVER
from ha_beat.schedule.recurrence import first_from
from tests.integration.django.project.app import app

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
UTC_ZONE = ZoneInfo("UTC")
HOURLY_CRONTAB = CrontabSchedule(minute="0", hour="*", timezone=UTC_ZONE)


def entry(**fields: object) -> RowEntry:
    """Return the entry of an unsaved row."""
    return RowEntry(PeriodicTask(pk=1, name="row", task="tick", date_changed=NOON, **fields), app)


def hourly() -> IntervalSchedule:
    return IntervalSchedule(every=1, period="hours")


def test_crontab_follows_its_time_zone():
    """The clock in New York changes to summer time on 8 March 2026."""
    task = entry(crontab=CrontabSchedule(minute="30", hour="6", timezone=ZoneInfo("America/New_York")))
    first = task.instants.next_after(datetime(2026, 3, 7, tzinfo=UTC))
    second = task.instants.next_after(first)
    assert first == datetime(2026, 3, 7, 11, 30, tzinfo=UTC)
    assert second == datetime(2026, 3, 8, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
def test_crontab_is_due_when_stock_is_due(zone, monkeypatch):
    """Stock's entry is due at the same instant, and not a second earlier."""
    fields = {"crontab": CrontabSchedule(minute="10,40", hour="*/5", timezone=ZoneInfo(zone))}
    instant = entry(**fields).instants.next_after(NOON)
    for at, due in ((instant - timedelta(seconds=1), False), (instant, True)):
        stock = ModelEntry(PeriodicTask(name="row", task="tick", last_run_at=NOON, **fields), app)
        monkeypatch.setattr(type(stock.schedule), "nowfunc", lambda self, at=at: at.astimezone(self.tz))
        stock.schedule.nowfun = stock.schedule.nowfunc
        assert stock.is_due().is_due is due


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"interval": hourly(), "start_time": NOON + HOUR / 2}, [NOON + HOUR / 2, NOON + 1.5 * HOUR]),
        ({"interval": hourly(), "expires": NOON + 2 * HOUR}, [NOON + HOUR, FOREVER]),
        ({"crontab": HOURLY_CRONTAB, "start_time": NOON + 3 * HOUR}, [NOON + 3 * HOUR, NOON + 4 * HOUR]),
        ({"clocked": ClockedSchedule(clocked_time=NOON + HOUR)}, [NOON + HOUR, FOREVER]),
        ({"clocked": ClockedSchedule(clocked_time=NOON), "start_time": NOON + HOUR}, [NOON + HOUR, FOREVER]),
    ],
    ids=["interval with start", "interval with expiry", "crontab with start", "clocked", "clocked with later start"],
)
def test_start_and_expiry_limit_the_instants(fields, expected):
    task = entry(**fields)
    first = task.instants.next_after(NOON - HOUR / 2 if "clocked" in fields else NOON)
    assert [first, task.instants.next_after(first)] == expected


def test_interval_enabled_again_keeps_the_grid_of_its_start():
    start = NOON + timedelta(minutes=30)
    task = entry(interval=hourly(), start_time=start)
    assert task.instants.origin(NOON + timedelta(hours=3, minutes=10)) == start + 2 * HOUR


def test_clocked_row_with_a_later_start_is_due_at_its_start():
    task = entry(clocked=ClockedSchedule(clocked_time=NOON), start_time=NOON + HOUR)
    assert task.instants.next_after(NOON + HOUR / 2) == NOON + HOUR


def test_clocked_row_has_one_instant_however_late():
    task = entry(clocked=ClockedSchedule(clocked_time=NOON), one_off=True)
    assert newest_due(task.instants, NOON, NOON + 1000 * HOUR, keep=1) == DueInstants(NOON, NOON, NOON)
    assert task.once


def test_past_instants_are_on_the_intervals_grid():
    """A backfill enqueues only instants that were due."""
    known, since = NOON + timedelta(minutes=7), NOON - timedelta(minutes=20)
    assert first_from(entry(interval=hourly()).instants, known, since) == NOON + timedelta(minutes=7)
    assert first_from(entry(interval=hourly()).instants, known, since - HOUR) == NOON - timedelta(minutes=53)
    started = entry(interval=hourly(), start_time=NOON - timedelta(minutes=53)).instants
    assert first_from(started, known, since - 5 * HOUR) == NOON - timedelta(minutes=53)
    assert first_from(started, NOON - 9 * HOUR, NOON) == known
    assert first_from(entry(interval=hourly(), expires=NOON).instants, known, NOON) == FOREVER
    crontab = CrontabSchedule(minute="30", hour="*", timezone=UTC_ZONE)
    assert first_from(entry(crontab=crontab).instants, known, since) == NOON + HOUR / 2


def test_instants_of_a_solar_row_are_whole_seconds():
    pytest.importorskip("ephem")
    task = entry(solar=SolarSchedule(event="sunset", latitude=Decimal("37.7749"), longitude=Decimal("-122.4194")))
    instant = task.instants.next_after(NOON)
    assert NOON < instant < NOON + 24 * HOUR
    assert instant.microsecond == 0


def test_row_with_a_cleared_last_run_counts_from_its_last_change():
    """django-celery-beat clears last_run_at when it saves a disabled row, and keeps the run count."""
    assert entry(interval=hourly(), total_run_count=3, last_run_at=None).stored_last_run_at == NOON
    assert entry(interval=hourly(), total_run_count=0, last_run_at=None).stored_last_run_at is None
    assert entry(interval=hourly(), total_run_count=3, last_run_at=NOON - HOUR).stored_last_run_at == NOON - HOUR


def test_signature_depends_only_on_the_schedule():
    task = entry(interval=hourly())
    assert entry(interval=IntervalSchedule(every=60, period="minutes"), args="[1]").signature == task.signature
    assert entry(interval=hourly(), start_time=NOON).signature != task.signature
    assert entry(interval=IntervalSchedule(every=2, period="hours")).signature != task.signature


def test_schedule_that_a_project_computes_is_used():
    """The project's entry class changes the schedule by another column."""

    class Later(RowEntry):
        def __init__(self, model: Any, app: Any = None) -> None:
            super().__init__(model, app)
            self.schedule.run_every *= model.priority

    tasks = [PeriodicTask(pk=pk, name="row", task="tick", interval=hourly(), priority=pk) for pk in (1, 2)]
    entries = [Later(task, app) for task in tasks]
    assert [each.instants.next_after(NOON) for each in entries] == [NOON + HOUR, NOON + 2 * HOUR]


@pytest.mark.parametrize("fields", [{"args": "["}, {"kwargs": "{"}, {"interval": None}])
def test_unreadable_row_is_refused_and_not_written(fields):
    with pytest.raises(UnreadableRow):
        entry(**{"interval": hourly(), **fields})


def test_scheduler_with_stock_entries_does_not_start():
    """Stock's entry saves its row when it checks whether it is due."""
    from ha_beat.django.schedulers import HADatabaseScheduler

    class Own(HADatabaseScheduler):
        Entry = ModelEntry

    with pytest.raises(SystemExit, match=r"Own\.Entry is ModelEntry.*RowEntry"):
        Own(app)
