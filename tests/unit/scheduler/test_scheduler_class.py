"""Scheduler classes: their entries, and the base classes that are refused."""

from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import crontab
from celery.utils.imports import symbol_by_name

from ha_beat.scheduler import HAMixin, HAScheduler

APP = Celery("classes", broker="redis://", set_as_current=False)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_merge_drops_what_is_no_longer_configured():
    scheduler = HAScheduler(APP, lazy=True)
    scheduler.merge_inplace({"old": {"task": "t", "schedule": 1.0}, "stays": {"task": "t", "schedule": 1.0}})
    scheduler.schedule["stays"].total_run_count = 7
    scheduler.merge_inplace({"stays": {"task": "u", "schedule": 2.0}, "bad": {"schedule": "x", "no": 1}})
    (entry,) = scheduler.schedule.values()
    assert (entry.name, entry.task, entry.total_run_count) == ("stays", "u", 7)


def test_schedule_has_the_entries_that_celery_adds():
    """Celery's persistent scheduler removes expired results from a backend that does not remove them itself."""
    app = Celery("turns", broker="redis://", backend="cache+memory://", set_as_current=False)
    app.conf.beat_schedule = {"one": {"task": "t", "schedule": 1.0}}
    app.backend.supports_autoexpire = False
    assert set(HAScheduler(app).schedule) == {"celery.backend_cleanup", "one"}


def test_entries_share_one_last_run_unless_a_schedule_has_its_own_clock():
    """Celery sets it to the start of the process, with another object for each entry."""
    own = crontab(nowfun=lambda: NOW)
    app = Celery(set_as_current=False, broker="redis://")
    app.conf.beat_schedule = {
        name: {"task": "t", "schedule": each} for name, each in {"a": 5, "b": crontab(), "own": own}.items()
    }
    scheduler = HAScheduler(app=app)
    last_runs = {name: entry.last_run_at for name, entry in scheduler.schedule.items()}
    assert last_runs["a"] is last_runs["b"]
    assert last_runs["own"] == NOW
    assert all(scheduler.stored_last_run_at(entry) is None for entry in scheduler.schedule.values())


def test_wrong_time_zone_does_not_hide_a_wrong_setting():
    app = Celery("zone", broker="redis://", timezone="No/Where", set_as_current=False)
    assert HAScheduler(app, lazy=True).info
    app.conf.ha_beat_lease_ttl = "abc"
    with pytest.raises(SystemExit, match="ha_beat_lease_ttl"):
        HAScheduler(app, lazy=True)


class Beating(Scheduler):
    """Base class that does its work in its own ``tick``."""

    def tick(self, *_: Any, **__: Any) -> float:
        return 1.0


class Due(Scheduler):
    def maybe_due(self, entry: ScheduleEntry) -> float:
        return 1.0


class OtherBroker(Scheduler):
    @property
    def producer(self) -> Any:
        return None


@pytest.mark.parametrize(("base", "name"), [(Beating, "tick"), (Due, "maybe_due"), (OtherBroker, "producer")])
def test_method_that_is_never_called_is_refused(base: type, name: str):
    kind = type("Mine", (HAMixin, base), {})
    with pytest.raises(SystemExit, match=rf"{base.__name__}\.{name} "):
        kind(app=APP, lazy=True)


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("redbeat.schedulers:RedBeatScheduler", "maybe_due"),
        ("django_celery_beat.schedulers:DatabaseScheduler", "HADatabaseScheduler"),
    ],
)
def test_scheduler_that_cannot_be_a_base_is_refused(base: str, named: str):
    module, _, name = base.partition(":")
    # django-celery-beat's can only be imported in a configured project.
    of_django = type(name, (Scheduler,), {"__module__": module})
    kind = type("Mine", (HAMixin, of_django if module.startswith("django") else symbol_by_name(base)), {})
    with pytest.raises(SystemExit, match=named):
        kind(app=APP, lazy=True)
