"""Rows for the tests, and waits for their state."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks

from ha_beat.django.entries import RowEntry
from ha_beat.django.queries import DjangoQueries
from ha_beat.row_store.reader import RowReader
from tests.faults.cluster import BeatCluster
from tests.integration.django.project.app import app
from tests.support.clocks import AdvancedClock
from tests.support.servers import wait_for


def row(name: str, **fields: Any) -> Any:
    """Create a PeriodicTask of the task `tick`."""
    return PeriodicTask.objects.create(name=name, task=fields.pop("task", "tick"), **fields)


def every(seconds: float) -> Any:
    every, period = (round(seconds), "seconds") if seconds >= 1000 else (round(seconds * 1e6), "microseconds")
    return IntervalSchedule.objects.get_or_create(every=every, period=period)[0]


def cron(minute: str = "*", hour: str = "*", **fields: Any) -> Any:
    fields = {"timezone": "UTC", **fields}
    return CrontabSchedule.objects.get_or_create(minute=minute, hour=hour, **fields)[0]


def at(instant: datetime) -> Any:
    return ClockedSchedule.objects.get_or_create(clocked_time=instant)[0]


def soon(seconds: float) -> datetime:
    return timezone.now() + timedelta(seconds=seconds)


def fresh(task: Any) -> Any:
    """Reload the row."""
    task.refresh_from_db()
    return task


def switch(task: Any, *, on: bool) -> None:
    """Enable or disable the row like django-celery-beat's admin actions, which do not save it."""
    with transaction.atomic():
        # In this order: SQLite refuses a transaction that reads first and writes after another writer.
        PeriodicTask.objects.filter(pk=task.pk).update(enabled=on)
        PeriodicTasks.update_changed()


def verdict(cluster: BeatCluster, task: Any) -> str:
    """Return the verdict in the task's ledger row; empty if it has none."""
    return str(cluster.ledger().get(str(task.pk), {}).get("verdict", ""))


def wait_for_verdict(cluster: BeatCluster, task: Any, expected: str, within: float = 40) -> None:
    wait_for(lambda: verdict(cluster, task) == expected, within, f"{task} to be {expected}", 0.05)


def wait_until_disabled(task: Any, within: float = 40) -> None:
    wait_for(lambda: not fresh(task).enabled, within, f"{task} to be disabled", 0.05)


def reader_of(clock: AdvancedClock, **options: Any) -> RowReader:
    """Return a reader of all enabled rows; the options are those of `RowReader`."""
    return RowReader(
        DjangoQueries(PeriodicTasks, lambda: PeriodicTask.objects.filter(enabled=True)),
        lambda model: RowEntry(model, app),
        clock=clock,
        now=lambda: datetime.now(UTC) + timedelta(seconds=clock.ahead),
        **{"emit": lambda _: None, **options},
    )


def next_minute(at_least: float) -> datetime:
    """Return the next full minute that is more than ``at_least`` seconds away."""
    ahead = datetime.now(UTC) + timedelta(seconds=at_least)
    return ahead.replace(second=0, microsecond=0) + timedelta(minutes=1)


def sleep_until(instant: datetime) -> None:
    time.sleep(max((instant - datetime.now(UTC)).total_seconds(), 0))
