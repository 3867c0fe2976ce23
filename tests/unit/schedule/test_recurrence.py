"""Recurrences: the instants at which Celery would find a schedule due."""

from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar

from ha_beat.schedule.recurrence import recurrence_of
from ha_beat.testing import occurrences

STEP = timedelta(seconds=30)
CELERY = tuple(int(part) for part in version("celery").split(".")[:2])


def app_in(zone: str) -> Celery:
    return Celery(zone, set_as_current=False, timezone=zone)


def recurrence_in(zone: str, source: Any) -> Any:
    return recurrence_of(ScheduleEntry(name="e", task="t", schedule=source, app=app_in(zone)))


def polled_by_celery(
    spec: dict[str, Any], zone: str, start: datetime, end: datetime, step: timedelta = STEP
) -> list[datetime]:
    """Return the minutes in which stock beat would send if it looked at each step."""
    now = start
    asked = crontab(**spec, app=app_in(zone), nowfun=lambda: now.astimezone(ZoneInfo(zone)))
    last_run_at = start.astimezone(ZoneInfo(zone))
    found = []
    while now <= end:
        if asked.is_due(last_run_at).is_due:
            found.append(now.replace(second=0))
            last_run_at = now.astimezone(ZoneInfo(zone))
        now += step
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
CRONTABS_NEAR_CHANGES: dict[str, dict[str, Any]] = {
    **CRONTABS,
    "at 1:59": {"minute": 59, "hour": 1},
    "each 20 minutes from 1 to 3": {"minute": "*/20", "hour": "1-3"},
    "Sundays at 2:30": {"minute": 30, "hour": 2, "day_of_week": 0},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("spec", CRONTABS_NEAR_CHANGES)
def test_crontab_across_a_clock_change_is_due_as_in_celery(spec, change):
    zone, at = CHANGES[change]
    start, end = at - timedelta(hours=3, minutes=7), at + timedelta(hours=4)
    ours = occurrences(crontab(**CRONTABS_NEAR_CHANGES[spec]), start, end, app=app_in(zone))
    stock = polled_by_celery(CRONTABS_NEAR_CHANGES[spec], zone, start, end)
    assert len(set(ours)) == len(ours)
    if CELERY < (5, 7) and "missing" in change:
        # Older Celery runs instants in the gap early or twice. They are due here as in newer Celery.
        ours, stock = ([due for due in found if not at <= due < at + timedelta(hours=1)] for found in (ours, stock))
    assert ours == stock


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("spec", ["at 1:45", "at 2:15", "at midnight", "Sundays at 2:30"])
def test_crontab_of_each_day_is_due_as_in_celery_around_a_clock_change(spec, change):
    """On the day before and the day after, too. Celery looks each quarter of an hour, when these are due."""
    zone, at = CHANGES[change]
    day, fields = timedelta(hours=26), CRONTABS_NEAR_CHANGES[spec]
    ours = occurrences(crontab(**fields), at - day, at + day, app=app_in(zone))
    stock = polled_by_celery(fields, zone, at - day, at + day, timedelta(minutes=15))
    if CELERY < (5, 7) and "missing" in change:
        ours, stock = ([due for due in found if not at <= due < at + timedelta(hours=1)] for found in (ours, stock))
    assert ours == stock


@pytest.mark.parametrize(
    "source",
    [crontab(), crontab(minute="*/7"), crontab(minute=0, hour=4, day_of_month="1,15"), crontab(month_of_year=2)],
    ids=repr,
)
def test_crontab_instant_does_not_depend_on_the_start_of_the_search(source):
    """A leader that starts between two instants computes the same occurrence as one that was running."""
    recurrence = recurrence_in("Europe/Berlin", source)
    start = datetime(2030, 1, 20, 0, 0, 13, 123456, tzinfo=UTC)
    due = recurrence.next_after(start)
    for seconds in (1, 30, 46, 3600, 86400):
        if start + timedelta(seconds=seconds) < due:
            assert recurrence.next_after(start + timedelta(seconds=seconds)) == due
    following = recurrence.next_after(due)
    assert following > due
    assert recurrence.next_after(due + (following - due) / 2) == following


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
@pytest.mark.parametrize("spec", CRONTABS)
def test_missed_instants_of_a_crontab_are_counted_without_steps(spec, zone):
    """Across a change of the clock the count is unknown."""
    entry = ScheduleEntry(name="e", task="t", schedule=crontab(**CRONTABS[spec]), app=app_in(zone))
    for start in (datetime(2030, 1, 20, 9, 7, tzinfo=UTC), datetime(2030, 3, 29, 9, 7, tzinfo=UTC)):
        recurrence: Any = recurrence_of(entry)
        known, now = recurrence.next_after(start), start + timedelta(hours=65)
        missed = occurrences(entry, known, now)
        assert recurrence.newest(known, now) == (missed[-1], -1 if zone != "UTC" and start.month == 3 else len(missed))


@pytest.mark.parametrize("day", [-400, -1, 0, 1, 400])
def test_crontab_on_another_day_is_due_as_today(day):
    """Celery before 5.6 compares with today's date, so that an outage over midnight would lose occurrences."""
    start = datetime.now(UTC).replace(hour=22, minute=0, second=0, microsecond=0) + timedelta(days=day)
    found = occurrences(crontab(minute="*/20"), start, start + timedelta(hours=3), app=app_in("UTC"))
    assert found == [start + timedelta(minutes=20 * n) for n in range(1, 10)]


def test_interval_is_counted_from_the_due_instant_without_drift():
    start = datetime(2030, 1, 1, 0, 0, 0, 700000, tzinfo=UTC)
    found = occurrences(schedule(timedelta(seconds=0.3)), start, start + timedelta(hours=1))
    assert len(found) == 12_000
    assert found[-1] == start + timedelta(hours=1)


def test_relative_interval_of_an_hour_is_due_on_the_hour():
    start = datetime(2030, 1, 1, 10, 20, 33, tzinfo=UTC)
    found = occurrences(schedule(timedelta(hours=1), relative=True), start, start + timedelta(hours=3, minutes=50))
    assert [instant.time().isoformat() for instant in found] == ["11:00:00", "12:00:00", "13:00:00", "14:00:00"]


@pytest.mark.parametrize("every", [0, -1])
def test_interval_that_is_not_positive_is_an_error(every):
    start = datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="must be longer than 0 s"):
        occurrences(schedule(timedelta(seconds=every)), start, start + timedelta(days=1))


def test_solar_event_has_one_instant():
    """The start of the search moves the computed event by milliseconds, and its identity must not depend on that."""
    pytest.importorskip("ephem")
    recurrence = recurrence_in("Europe/Berlin", solar("sunset", 48.1, 11.6))
    noon = datetime(2030, 6, 1, 12, tzinfo=UTC)
    seen = {recurrence.next_after(noon + timedelta(minutes=7 * n)) for n in range(50)}
    assert len(seen) == 1
    (sunset,) = seen
    assert sunset.microsecond == 0
    days = [sunset]
    for _ in range(10):
        days.append(recurrence.next_after(days[-1]))
    assert max(abs(after - before - timedelta(days=1)) for before, after in pairwise(days)) < timedelta(minutes=10)


class OwnIsDue(crontab):
    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at)


class OwnEntry(ScheduleEntry):
    def is_due(self) -> Any:
        return super().is_due()


def test_subclass_that_overrides_is_due_has_no_recurrence():
    assert recurrence_in("UTC", OwnIsDue()) is None
    assert recurrence_of(OwnEntry(name="e", task="t", schedule=crontab(), app=app_in("UTC"))) is None
    assert recurrence_in("UTC", crontab()) is not None


def test_newest_instant_after_a_year_is_found_in_few_searches(monkeypatch):
    recurrence = recurrence_in("Europe/Berlin", crontab())
    searches, search = [], recurrence._search
    monkeypatch.setattr(recurrence, "_search", lambda instant: searches.append(instant) or search(instant))
    now = datetime(2031, 1, 1, 0, 0, 30, tzinfo=UTC)
    newest, _count = recurrence.newest(now.replace(second=0) - timedelta(days=365), now)
    assert newest == now.replace(second=0)
    assert len(searches) < 40
