"""Due instants of redbeat's rules, compared with dateutil's own search from the start."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("redbeat")

from redbeat.schedules import rrule

from ha_beat.redbeat.recurrence import RRule
from ha_beat.schedule.occurrence import FOREVER

START = datetime(2020, 1, 1, 9, 30, 15, tzinfo=timezone(timedelta(hours=-7)))

RULES: list[dict[str, Any]] = [
    {"freq": "MINUTELY", "interval": 7},
    {"freq": "HOURLY", "interval": 5, "byminute": [0, 20]},
    {"freq": "DAILY", "interval": 3, "byhour": [1, 13]},
    {"freq": "DAILY", "bysetpos": [-1], "byhour": [3, 5, 9]},
    {"freq": "DAILY", "count": 90, "interval": 2},
    {"freq": "WEEKLY", "interval": 3, "wkst": 6, "byweekday": [6, 0]},
    {"freq": "MONTHLY", "bymonthday": [-1]},
    {"freq": "MONTHLY", "until": datetime(2020, 9, 1, tzinfo=UTC)},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=25, deadline=None)
@given(seconds=st.integers(-1_000_000, 30_000_000))
def test_next_instant_is_that_of_a_search_from_the_start(rule, seconds):
    source = rrule(dtstart=START, **rule)
    instant = (START + timedelta(seconds=seconds)).astimezone(UTC)
    assert RRule(source).next_after(instant) == (source.rrule.after(instant) or FOREVER)


def test_newest_instant_is_found_years_after_the_start():
    recurrence = RRule(rrule("SECONDLY", interval=90, dtstart=START))
    known = recurrence.next_after(START.astimezone(UTC))
    newest, _ = recurrence.newest(known, known + timedelta(days=2000, seconds=100))
    assert newest == known + timedelta(days=2000, seconds=90)


@pytest.mark.parametrize(
    "rule", [{"freq": "MONTHLY", "bymonth": 2, "bymonthday": 30}, {"freq": "DAILY", "count": 2_000_000}], ids=str
)
def test_rule_without_instants_or_with_a_huge_count_is_refused(rule):
    with pytest.raises(ValueError):
        RRule(rrule(dtstart=START, **rule))
