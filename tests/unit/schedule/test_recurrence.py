"""The due instants: the same as Celery would find by asking all the time, each known by one instant."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar

from ha_beat.schedule.recurrence import instants_of
from ha_beat.testing import occurrences

STEP = timedelta(seconds=20)
CELERY = tuple(int(part) for part in version("celery").split(".")[:2])


def app_in(zone: str) -> Celery:
    return Celery(zone, set_as_current=False, timezone=zone)


def asked_all_the_time(spec: dict[str, Any], zone: str, start: datetime, end: datetime) -> list[datetime]:
    """What stock beat would send, were it to look every few seconds: the minutes in which it would."""
    now = start
    asked = crontab(**spec, app=app_in(zone), nowfun=lambda: now.astimezone(ZoneInfo(zone)))
    last_run_at = start.astimezone(ZoneInfo(zone))
    found = []
    while now <= end:
        if asked.is_due(last_run_at).is_due:
            found.append(now.replace(second=0))
            last_run_at = now.astimezone(ZoneInfo(zone))
        now += STEP
    return found


CHANGES = {
    "Berlin, an hour is missing": ("Europe/Berlin", datetime(2030, 3, 31, 1, tzinfo=UTC)),
    "Berlin, an hour comes twice": ("Europe/Berlin", datetime(2030, 10, 27, 1, tzinfo=UTC)),
    "New York, an hour is missing": ("America/New_York", datetime(2030, 3, 10, 7, tzinfo=UTC)),
    "New York, an hour comes twice": ("America/New_York", datetime(2030, 11, 3, 6, tzinfo=UTC)),
    "Lord Howe, half an hour is missing": ("Australia/Lord_Howe", datetime(2030, 10, 5, 15, 30, tzinfo=UTC)),
    "Lord Howe, half an hour comes twice": ("Australia/Lord_Howe", datetime(2030, 4, 6, 15, tzinfo=UTC)),
    "no change": ("Asia/Kolkata", datetime(2030, 1, 1, tzinfo=UTC)),
}
CRONTABS: dict[str, dict[str, Any]] = {
    "each minute": {},
    "each quarter": {"minute": "*/15"},
    "hourly": {"minute": 30},
    "at 1:45": {"minute": 45, "hour": 1},
    "at 2:15": {"minute": 15, "hour": 2},
    "at 2:30 and 3:00": {"minute": "0,30", "hour": "2,3"},
    "at midnight": {"minute": 0, "hour": 0},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("spec", CRONTABS)
def test_crontabs_over_changes_of_the_clock(spec: str, change: str):
    """Celery's own semantics: what is due when, and once each."""
    zone, at = CHANGES[change]
    start, end = at - timedelta(hours=3, minutes=7), at + timedelta(hours=4)
    ours = occurrences(crontab(**CRONTABS[spec]), start, end, app=app_in(zone))
    stock = asked_all_the_time(CRONTABS[spec], zone, start, end)
    assert len(set(ours)) == len(ours)
    if CELERY < (5, 7) and "missing" in change:
        # Older Celery runs what falls into the gap early, or twice; here it is due as in newer Celery.
        ours, stock = ([due for due in found if not at <= due < at + timedelta(hours=1)] for found in (ours, stock))
    assert ours == stock


@pytest.mark.parametrize(
    "what",
    [crontab(), crontab(minute="*/7"), crontab(minute=0, hour=4, day_of_month="1,15"), crontab(month_of_year=2)],
    ids=repr,
)
def test_an_occurrence_is_known_by_the_same_instant_from_wherever_one_counts(what: crontab):
    """A leader that starts in between, and one that never stopped, must mean the same occurrence."""
    entry = ScheduleEntry(name="e", task="t", schedule=what, app=app_in("Europe/Berlin"))
    instants = instants_of(entry)
    assert instants is not None
    start = datetime(2030, 1, 20, 0, 0, 13, 123456, tzinfo=UTC)
    due = instants.next_after(start)
    for seconds in (1, 30, 46, 3600, 86400):
        if start + timedelta(seconds=seconds) < due:
            assert instants.next_after(start + timedelta(seconds=seconds)) == due
    following = instants.next_after(due)
    assert following > due
    assert instants.next_after(due + (following - due) / 2) == following


@pytest.mark.parametrize("day", [-400, -1, 0, 1, 400])
def test_the_minutes_of_other_days_are_found_as_those_of_today(day: int):
    """Celery before 5.6 compares with today's date: an outage over midnight would lose the evening's occurrences."""
    start = datetime.now(UTC).replace(hour=22, minute=0, second=0, microsecond=0) + timedelta(days=day)
    found = occurrences(crontab(minute="*/20"), start, start + timedelta(hours=3), app=app_in("UTC"))
    assert found == [start + timedelta(minutes=20 * n) for n in range(1, 10)]


def test_an_interval_does_not_drift():
    """Counted from the last due instant, not from when it was sent."""
    start = datetime(2030, 1, 1, 0, 0, 0, 700000, tzinfo=UTC)
    found = occurrences(schedule(timedelta(seconds=0.3)), start, start + timedelta(hours=1))
    assert len(found) == 12_000
    assert found[-1] == start + timedelta(hours=1)


def test_relative_intervals_fall_on_round_times():
    """``relative=True``: hourly means on the hour."""
    start = datetime(2030, 1, 1, 10, 20, 33, tzinfo=UTC)
    found = occurrences(schedule(timedelta(hours=1), relative=True), start, start + timedelta(hours=3, minutes=50))
    assert [instant.time().isoformat() for instant in found] == ["11:00:00", "12:00:00", "13:00:00", "14:00:00"]


@pytest.mark.parametrize("every", [0, -1])
def test_an_interval_that_does_not_move_is_an_error(every: int):
    """It would be due for ever."""
    with pytest.raises(ValueError, match="must be longer than 0 s"):
        occurrences(
            schedule(timedelta(seconds=every)), datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 2, tzinfo=UTC)
        )


def test_solar_events_have_one_instant_each():
    """Where in its orbit one starts to compute moves them by milliseconds: an identity must not depend on it."""
    pytest.importorskip("ephem")
    entry = ScheduleEntry(name="e", task="t", schedule=solar("sunset", 48.1, 11.6), app=app_in("Europe/Berlin"))
    instants = instants_of(entry)
    assert instants is not None
    noon = datetime(2030, 6, 1, 12, tzinfo=UTC)
    seen = {instants.next_after(noon + timedelta(minutes=7 * n)) for n in range(50)}
    assert len(seen) == 1
    (sunset,) = seen
    assert sunset.microsecond == 0
    days = [sunset]
    for _ in range(10):
        days.append(instants.next_after(days[-1]))
    assert all(
        timedelta(hours=23, minutes=50) < after - before < timedelta(hours=24, minutes=10)
        for before, after in pairwise(days)
    )


class OwnIsDue(crontab):
    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at)


class OwnEntry(ScheduleEntry):
    def is_due(self) -> Any:
        return super().is_due()


def test_who_overrides_the_decision_is_asked():
    """A subclass that decides by itself is not second-guessed from the fields it inherited."""
    app = app_in("UTC")
    assert instants_of(ScheduleEntry(name="e", task="t", schedule=OwnIsDue(), app=app)) is None
    assert instants_of(OwnEntry(name="e", task="t", schedule=crontab(), app=app)) is None
    assert instants_of(ScheduleEntry(name="e", task="t", schedule=crontab(), app=app)) is not None


def test_the_newest_due_instant_is_found_without_stepping_through_them():
    """After a year away a crontab of each minute costs no more than after two hours."""
    entry = ScheduleEntry(name="e", task="t", schedule=crontab(), app=app_in("Europe/Berlin"))
    instants = instants_of(entry)
    assert instants is not None
    now = datetime(2031, 1, 1, 0, 0, 30, tzinfo=UTC)

    def cost(away: timedelta) -> float:
        known = now.replace(second=0) - away
        began = time.perf_counter()
        for _ in range(20):
            newest, _count = instants.newest(known, now)
        assert newest == now.replace(second=0)
        return time.perf_counter() - began

    cost(timedelta(hours=2))
    assert cost(timedelta(days=365)) < 50 * cost(timedelta(hours=2))
