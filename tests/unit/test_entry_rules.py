"""Rules of an entry on their way from each schedule source to the leader."""

from dataclasses import fields
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from celery.beat import ScheduleEntry

from ha_beat.reasons import MisfirePolicy, UncertainPolicy
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule_source import EntrySource
from ha_beat.stored_schedule import StoredSource
from ha_beat.testing import SettableClock

RULES = EntryOptions(MisfireRules(MisfirePolicy.ALL, 5.0, 7), UncertainPolicy.REPUBLISH, busy_for=9.0, jitter=3.0)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def static(source: Any, entry: Any) -> Any:
    return source._scheduled(entry, SimpleNamespace(of=lambda _: (None, "")))


def stored(source: Any, entry: Any) -> Any:
    return source._stored(entry, NOW)


@pytest.mark.parametrize(("kind", "scheduled"), [(EntrySource, static), (StoredSource, stored)])
def test_each_rule_of_an_entry_reaches_the_leader(kind, scheduled):
    source: Any = object.__new__(kind)
    source._scheduler = SimpleNamespace(entry_id=lambda _: "e", stored_last_run_at=lambda _: None)
    source.asks, source.rules_of, source._details = (lambda _: False), (lambda _: RULES), (lambda _: {})
    shape = dict.fromkeys(("instants", "stored_last_run_at", "since"))
    entry = SimpleNamespace(id="e", name="e", rules=RULES, signature="", run_state=(None, 0), schedule=None, **shape)
    found, default = scheduled(source, entry), EntryOptions(MisfireRules())
    for each in fields(EntryOptions):
        assert getattr(found, each.name) == getattr(RULES, each.name) != getattr(default, each.name)


class Unasked(list[int]):
    """Arguments that are not empty, and whose size is expensive, such as rows of a database."""

    def __len__(self) -> int:
        raise AssertionError("asked")


def test_comparison_of_entries_does_not_ask_objects_of_the_project():
    """The leader compares all entries about once a second. An exception would stop each turn of its main loop."""
    source, clock = cast("Any", object.__new__(EntrySource)), SettableClock()
    source._clock, source._compare_at, source._seen_objects = clock, 0.0, None
    app = Celery(set_as_current=False)
    schedule = {"e": ScheduleEntry(name="e", task="t", schedule=5, args=Unasked(), app=app)}
    assert not source._entry_replaced(schedule)
    clock.advance(60)
    assert not source._entry_replaced(schedule)
    schedule["e"].args = Unasked()
    clock.advance(60)
    assert source._entry_replaced(schedule)
