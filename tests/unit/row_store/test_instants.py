"""Schedules that rows share, and the instants of a shared crontab."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab

from ha_beat.row_store.entry import shared_schedule
from ha_beat.row_store.instants import GapCachingCrontab
from ha_beat.schedule.recurrence import Crontab

DAYS = {
    "an hour is missing": ("Europe/Berlin", datetime(2030, 3, 31, tzinfo=UTC)),
    "an hour comes twice": ("Europe/Berlin", datetime(2030, 10, 27, tzinfo=UTC)),
    "half an hour comes twice": ("Australia/Lord_Howe", datetime(2030, 4, 6, tzinfo=UTC)),
    "no change": ("Asia/Kolkata", datetime(2030, 1, 1, tzinfo=UTC)),
}


def made(kind: type[Any], zone: str, **spec: str) -> Any:
    return kind(crontab(**spec, app=Celery(zone, set_as_current=False, timezone=zone)))


@pytest.mark.parametrize("day", DAYS)
@pytest.mark.parametrize(
    "spec",
    [
        {"minute": "*/15"},
        {"minute": "30", "hour": "2"},
        {"minute": "0,30", "hour": "1,3"},
        {"minute": "0", "hour": "3", "day_of_month": "1"},
    ],
    ids=str,
)
def test_crontab_that_rows_share_has_the_same_instants(spec, day):
    """Rows ask in any order. The days include clock changes."""
    zone, at = DAYS[day]
    asked = [at + timedelta(minutes=minutes) for minutes in range(-3600, 3600, 17)]
    random.Random(1).shuffle(asked)
    shared, single = made(GapCachingCrontab, zone, **spec), made(Crontab, zone, **spec)
    assert [shared.next_after(instant) for instant in asked] == [single.next_after(instant) for instant in asked]


def test_crontab_that_rows_share_is_searched_once_for_each_gap(monkeypatch):
    searched, search = [], Crontab._search
    monkeypatch.setattr(Crontab, "_search", lambda self, at: searched.append(at) or search(self, at))
    shared, start = made(GapCachingCrontab, "UTC", minute="0", hour="3"), datetime(2030, 1, 1, 3, tzinfo=UTC)
    for second in range(1000):
        assert shared.next_after(start + timedelta(seconds=second)) == start + timedelta(days=1)
        assert shared.next_after(start - timedelta(days=1, seconds=-second)) == start
    assert len(searched) == 2


@pytest.mark.parametrize("own", [None, "entry", "model", "source"])
def test_rows_of_a_class_of_a_project_share_no_schedule(own):
    """The class may have more columns, compute the schedule, or change it."""
    made = property(lambda _: crontab(minute="5"))
    stock = {"entry": "ha_beat.django.entries"} | dict.fromkeys(("model", "source"), "django_celery_beat.models")
    entry, model, source = (
        type(kind, (), {"__module__": "models_of_a_project" if kind == own else module, "schedule": made})
        for kind, module in stock.items()
    )
    app = Celery("rows", set_as_current=False)
    one, two, other = (
        shared_schedule(entry, model(), source(), (("minute", minute),), app) for minute in ("5", "5", "6")
    )
    assert (one is two) == (own is None)
    assert other is not one
