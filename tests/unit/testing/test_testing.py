"""Public helpers for tests: due instants, headers and the settable clock."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery, Task
from celery.schedules import BaseSchedule, crontab, schedstate, schedule

from ha_beat import occurrence_of
from ha_beat.testing import SettableClock, occurrence_headers, occurrences

MONDAY = datetime(2030, 1, 7, tzinfo=UTC)


@pytest.fixture
def app() -> Celery:
    return Celery("berlin", set_as_current=False, timezone="Europe/Berlin")


def test_crontab_uses_the_time_zone_of_the_app(app: Celery):
    """Nine o'clock in Berlin is eight in UTC in winter."""
    found = occurrences(crontab(minute=0, hour="9,17"), MONDAY, MONDAY + timedelta(days=1), app=app)
    assert found == [MONDAY.replace(hour=8), MONDAY.replace(hour=16)]


@pytest.mark.parametrize("what", [600, 600.0, timedelta(minutes=10), schedule(600), {"schedule": 600, "args": (1,)}])
def test_interval_is_accepted_in_every_form_of_a_beat_schedule(what: object):
    """The end of the range is included."""
    found = occurrences(what, MONDAY, MONDAY + timedelta(minutes=30))
    assert found == [MONDAY + timedelta(minutes=minutes) for minutes in (10, 20, 30)]


def test_given_schedule_object_is_not_changed(app: Celery):
    """Celery sets the app, and with it the time zone, on the schedule object of an entry."""
    mine = crontab(app=Celery("utc", set_as_current=False, timezone="UTC"))
    occurrences(mine, MONDAY, MONDAY + timedelta(minutes=2), app=app)
    assert str(mine.tz) == "UTC"


class WhenTheMinuteIsSeven(BaseSchedule):
    """Schedule that knows only whether it is due now."""

    def is_due(self, last_run_at: datetime) -> schedstate:
        now = self.now()
        return schedstate(now.minute == 7 and now - last_run_at > timedelta(minutes=1), 30)


def test_custom_schedule_class_is_checked_while_its_clock_advances():
    found = occurrences(WhenTheMinuteIsSeven(), MONDAY, MONDAY + timedelta(hours=2))
    assert found == [MONDAY + timedelta(minutes=7), MONDAY + timedelta(minutes=67)]


def test_unknown_entry_name_is_refused_with_the_nearest_name(app: Celery):
    app.conf.beat_schedule = {"report": {"task": "t", "schedule": crontab(minute=0, hour=9)}}
    day = timedelta(days=1)
    assert occurrences("report", MONDAY, MONDAY + day, app=app) == [MONDAY.replace(hour=8)]
    with pytest.raises(ValueError, match="no entry 'reprt' in its beat_schedule; did you mean report"):
        occurrences("reprt", MONDAY, MONDAY + day, app=app)


DAY = {"start": MONDAY, "end": MONDAY + timedelta(days=1)}


@pytest.mark.parametrize(
    ("what", "options", "error", "message"),
    [
        (None, {}, TypeError, "is not a schedule"),
        (object(), {}, TypeError, "is not a schedule"),
        ({"task": "t"}, {}, TypeError, "is not a schedule"),
        ({"schedule": "0 3 * * *"}, {}, TypeError, "is not a schedule"),
        (1, {"limit": 10}, ValueError, "more than 10 instants"),
        (1, {"start": MONDAY.replace(tzinfo=None)}, ValueError, "start needs a time zone"),
    ],
)
def test_instants_that_cannot_be_computed_are_refused(what: object, options: dict[str, Any], error: type, message: str):
    with pytest.raises(error, match=message):
        occurrences(what, **{**DAY, **options})


def test_task_reads_its_occurrence_from_the_test_headers(app: Celery):
    @app.task(bind=True)
    def report(self: Task) -> object:
        return occurrence_of(self.request)

    summer = datetime(2030, 7, 1, 11, tzinfo=ZoneInfo("Europe/Berlin"))
    occurrence = report.apply(headers=occurrence_headers("nightly", summer, backfill=True)).get()
    assert (occurrence.entry, occurrence.scheduled_at, occurrence.cluster) == ("nightly", summer, "test")
    assert (occurrence.backfill, occurrence.manual) == (True, False)
    with pytest.raises(ValueError, match="time zone"):
        occurrence_headers("nightly", summer.replace(tzinfo=None))


def test_settable_clock_moves_only_by_its_methods():
    """A sleep advances both clocks, a step only the wall clock."""
    clock = SettableClock(MONDAY, rate=2.0)
    elapsed = clock.elapsed()
    clock.sleep(3.0)
    assert (clock.now(), clock.elapsed() - elapsed) == (MONDAY + timedelta(seconds=3), 6.0)
    clock.step_wall(-3600)
    assert (clock.now(), clock.elapsed() - elapsed) == (MONDAY + timedelta(seconds=3 - 3600), 6.0)
    with pytest.raises(ValueError, match="use step_wall"):
        clock.advance(-1)
