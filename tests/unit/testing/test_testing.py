"""What ships for users' own tests: the settable clock, and when an entry would be due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
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


def test_a_crontab_is_read_in_the_time_zone_of_the_app(app: Celery):
    """Nine o'clock in Berlin is eight in UTC in winter."""
    found = occurrences(crontab(minute=0, hour="9,17"), MONDAY, MONDAY + timedelta(days=1), app=app)
    assert found == [MONDAY.replace(hour=8), MONDAY.replace(hour=16)]


@pytest.mark.parametrize("what", [600, 600.0, timedelta(minutes=10), schedule(600), {"schedule": 600, "args": (1,)}])
def test_an_interval_may_be_given_as_in_a_beat_schedule(what: object):
    """Numbers, timedeltas, schedule objects and whole entries mean the same; the end belongs to the span."""
    found = occurrences(what, MONDAY, MONDAY + timedelta(minutes=30))
    assert found == [MONDAY + timedelta(minutes=minutes) for minutes in (10, 20, 30)]


def test_the_schedule_that_was_given_is_left_as_it_is(app: Celery):
    """Celery's entries set the app on the schedule object; the caller's must not change its time zone by it."""
    mine = crontab(app=Celery("utc", set_as_current=False, timezone="UTC"))
    occurrences(mine, MONDAY, MONDAY + timedelta(minutes=2), app=app)
    assert str(mine.tz) == "UTC"


class WhenTheMinuteIsSeven(BaseSchedule):
    """Knows only whether it is due now."""

    def is_due(self, last_run_at: datetime) -> schedstate:
        now = self.now()
        return schedstate(now.minute == 7 and now - last_run_at > timedelta(minutes=1), 30)


def test_a_schedule_class_of_ones_own_is_asked_with_its_clock_set_forward():
    """Such a schedule is due when it first says so."""
    found = occurrences(WhenTheMinuteIsSeven(), MONDAY, MONDAY + timedelta(hours=2))
    assert found == [MONDAY + timedelta(minutes=7), MONDAY + timedelta(minutes=67)]


def test_an_entry_may_be_given_by_its_name(app: Celery):
    """As it stands in the app's beat_schedule; a name that is not there is answered with the nearest."""
    app.conf.beat_schedule = {"report": {"task": "t", "schedule": crontab(minute=0, hour=9)}}
    day = timedelta(days=1)
    assert occurrences("report", MONDAY, MONDAY + day, app=app) == [MONDAY.replace(hour=8)]
    with pytest.raises(ValueError, match="no entry 'reprt' in its beat_schedule; did you mean 'report'"):
        occurrences("reprt", MONDAY, MONDAY + day, app=app)


@pytest.mark.parametrize("what", [None, object(), {"task": "t"}, {"schedule": "0 3 * * *"}])
def test_what_is_no_schedule_is_refused_in_words(what: object):
    with pytest.raises(TypeError, match="is no schedule"):
        occurrences(what, MONDAY, MONDAY + timedelta(days=1))


def test_a_task_finds_its_occurrence_in_the_headers_for_tests(app: Celery):
    """As in a message of beat's."""

    @app.task(bind=True)
    def report(self: Task) -> object:
        return occurrence_of(self.request)

    summer = datetime(2030, 7, 1, 11, tzinfo=ZoneInfo("Europe/Berlin"))
    occurrence = report.apply(headers=occurrence_headers("nightly", summer, backfill=True)).get()
    assert (occurrence.entry, occurrence.scheduled_at, occurrence.cluster) == ("nightly", summer, "test")
    assert (occurrence.backfill, occurrence.manual) == (True, False)
    with pytest.raises(ValueError, match="time zone"):
        occurrence_headers("nightly", summer.replace(tzinfo=None))


def test_endless_occurrences_are_refused():
    """A span too long for its interval is an error, not a machine out of memory."""
    with pytest.raises(ValueError, match="more than 10 instants"):
        occurrences(1, MONDAY, MONDAY + timedelta(days=1), limit=10)


def test_naive_instants_are_refused():
    """A naive start would mean another instant on each machine."""
    with pytest.raises(ValueError, match="start needs a time zone"):
        occurrences(1, MONDAY.replace(tzinfo=None), MONDAY)


def test_the_settable_clock_moves_only_when_told():
    """Sleeping passes time on both clocks, a step of the wall clock on that one alone."""
    clock = SettableClock(MONDAY, rate=2.0)
    elapsed = clock.elapsed()
    clock.sleep(3.0)
    assert (clock.now(), clock.elapsed() - elapsed) == (MONDAY + timedelta(seconds=3), 6.0)
    clock.step_wall(-3600)
    assert (clock.now(), clock.elapsed() - elapsed) == (MONDAY + timedelta(seconds=3 - 3600), 6.0)
    with pytest.raises(ValueError, match="does not run backwards"):
        clock.advance(-1)
