"""Forecast of the entries that are due first."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

from celery.schedules import schedule

from ha_beat.leader import forecast as forecasts
from ha_beat.leader.forecast import Forecast, Outline
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule.recurrence import Interval
from tests.support.clocks import SteppedClock

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def forecast(*outlines: Outline, clock: Any = None) -> Forecast:
    shadow: Any = Mock(position=lambda _: None)
    return Forecast(lambda: iter(outlines), shadow, lambda: NOW, clock or SteppedClock())


def every(seconds: float) -> Interval:
    return Interval(schedule(timedelta(seconds=seconds)))


def test_first_start_forecasts_entries_by_their_next_instants():
    """The replica was never a standby, and most entries have never run."""
    found = forecast(
        ("daily", every(86400), NEVER),
        ("each minute", every(60), NEVER),
        ("each second", every(1), NEVER),
        ("missed", every(3600), NOW - timedelta(hours=2)),
        ("asked", None, NEVER),
    ).take()
    assert found == ["asked", "missed", "each second", "each minute"]


def test_forecast_is_completed_at_a_takeover_as_far_as_that_is_quick():
    clock = SteppedClock()

    def outlines() -> Iterator[Outline]:
        for number in range(100_000):
            clock.ahead += 0.001
            yield str(number), every(60), NEVER

    found = Forecast(outlines, Mock(position=lambda _: None), lambda: NOW, clock).take()
    assert forecasts._TAKE_BUDGET * 1000 <= len(found) <= forecasts._TAKE_BUDGET * 1000 + forecasts._STEP


def test_forecast_that_was_begun_as_a_standby_is_continued_at_a_takeover(monkeypatch):
    monkeypatch.setattr(forecasts, "_NEW_BUDGET", 1e-9)
    begun = forecast(*((str(number), every(60 + number / 1000), NEVER) for number in range(120)))
    begun.turn()
    assert [int(entry) for entry in begun.take()] == list(range(120))
