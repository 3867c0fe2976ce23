"""Beats on a site, and rows for them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from tests.faults.cluster import BeatCluster
from tests.integration.django.conftest import Site

HA = "ha_beat.django.schedulers:HADatabaseScheduler"
STOCK = "django_celery_beat.schedulers:DatabaseScheduler"


def beats(site: Site, replicas: int = 2, scheduler: str = HA, **options: Any) -> BeatCluster:
    """Beats of the site; `django` are Django settings, the rest is `BeatCluster`'s."""
    django = options.pop("django", {})
    env = {**site.env(**django), **options.pop("env", {})}
    return BeatCluster(
        site.redis.url,
        replicas=replicas,
        scheduler=scheduler,
        app="tests.integration.django.project.app",
        cluster="site",
        env=env,
        **options,
    )


def row(name: str, **fields: Any) -> Any:
    """A PeriodicTask of the task `tick`."""
    from django_celery_beat.models import PeriodicTask

    return PeriodicTask.objects.create(name=name, task=fields.pop("task", "tick"), **fields)


def every(seconds: float) -> Any:
    from django_celery_beat.models import IntervalSchedule

    every, period = (round(seconds), "seconds") if seconds >= 1000 else (round(seconds * 1e6), "microseconds")
    return IntervalSchedule.objects.get_or_create(every=every, period=period)[0]


def cron(minute: str = "*", hour: str = "*", **fields: Any) -> Any:
    from django_celery_beat.models import CrontabSchedule

    fields = {"timezone": "UTC", **fields}
    return CrontabSchedule.objects.get_or_create(minute=minute, hour=hour, **fields)[0]


def at(instant: datetime) -> Any:
    from django_celery_beat.models import ClockedSchedule

    return ClockedSchedule.objects.get_or_create(clocked_time=instant)[0]


def soon(seconds: float) -> datetime:
    return timezone.now() + timedelta(seconds=seconds)


def fresh(task: Any) -> Any:
    """The row as it stands now."""
    task.refresh_from_db()
    return task
