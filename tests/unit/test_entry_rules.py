"""Rules of an entry on their way from each schedule source to the leader."""

from dataclasses import fields
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab

from ha_beat.reasons import MisfirePolicy, UncertainPolicy
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule_source import EntrySource
from ha_beat.scheduler import HAScheduler
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


def empty_again(entry: Any) -> None:
    entry.kwargs = {}


def fill(entry: Any) -> None:
    entry.kwargs["a"] = 1


def replace_task(entry: Any) -> None:
    entry.task = "another"


@pytest.mark.parametrize(("edit", "replaced"), [(empty_again, False), (fill, True), (replace_task, True)])
def test_comparison_of_plain_entries_finds_other_values(edit, replaced):
    source, clock = cast("Any", object.__new__(EntrySource)), SettableClock()
    source._clock, source._compare_at, source._seen_objects = clock, 0.0, None
    app = Celery(set_as_current=False)
    schedule = {name: ScheduleEntry(name=name, task="t", schedule=5, app=app) for name in "ab"}
    assert not source._entry_replaced(schedule)
    edit(schedule["b"])
    found = []
    for _ in range(2):
        clock.advance(60)
        found.append(source._entry_replaced(schedule))
    assert found == [replaced, False]


def test_entries_share_one_last_run_unless_a_schedule_has_its_own_clock():
    """Celery sets it to the start of the process, for each entry apart."""
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


def test_limit_of_crontabs_is_read_once_for_a_load():
    source = EntrySource(cast("Any", HAScheduler(app=Celery(set_as_current=False, broker="redis://"), lazy=True)))
    app = Celery(set_as_current=False)
    entries = [ScheduleEntry(name=name, task="t", schedule=crontab(app=app), app=app) for name in "ab"]
    for limit in (7, 8):
        app.conf.beat_cron_starting_deadline = limit
        source.detect_hooks()
        assert [source.rules_of(entry).misfire.grace for entry in entries] == [limit, limit]
