"""Entries on their way from each schedule source to the leader, and the edits that the leader notices."""

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab

from ha_beat.reasons import MisfirePolicy, UncertainPolicy, Verdict
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule_sources.comparison import ScheduleComparison
from ha_beat.schedule_sources.entry_source import EntrySource
from ha_beat.schedule_sources.stored_source import StoredSource
from ha_beat.scheduler import HAScheduler
from ha_beat.store.ledger import LedgerRow
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
    source.hooks = SimpleNamespace(replaces_is_due=lambda _: False)
    source.rules, source._details = SimpleNamespace(of=lambda _: RULES), lambda _: {}
    shape = dict.fromkeys(("instants", "stored_last_run_at", "since"))
    entry = SimpleNamespace(id="e", name="e", rules=RULES, signature="", run_state=(None, 0), schedule=None, **shape)
    found, default = scheduled(source, entry), EntryOptions(MisfireRules())
    for each in fields(EntryOptions):
        assert getattr(found, each.name) == getattr(RULES, each.name) != getattr(default, each.name)


class Unasked(list[int]):
    """Arguments that are not empty, and whose size is expensive, such as rows of a database."""

    def __len__(self) -> int:
        raise AssertionError("asked")


EDITS: dict[str, tuple[Callable[[Any], object], bool]] = {
    "nothing": (lambda _: None, False),
    "empty again": (lambda entry: setattr(entry, "kwargs", {}), False),
    "filled": (lambda entry: entry.kwargs.update(a=1), True),
    "another task": (lambda entry: setattr(entry, "task", "another"), True),
    "other arguments": (lambda entry: setattr(entry, "args", Unasked()), True),
}


@pytest.mark.parametrize(("edit", "replaced"), EDITS.values(), ids=EDITS)
def test_comparison_finds_an_entry_with_other_values(edit, replaced):
    """It does not ask objects of the project: an exception would stop each turn of the leader's main loop."""
    clock, app = SettableClock(), Celery(set_as_current=False)
    schedule = {
        name: ScheduleEntry(name=name, task="t", schedule=5, args=args, app=app)
        for name, args in {"a": (), "b": Unasked(), "c": ()}.items()
    }
    comparison = ScheduleComparison(SimpleNamespace(schedule=schedule), clock, asks_scheduler=False)
    assert not comparison.differs()
    edit(schedule["c"])
    found = []
    for _ in range(2):
        clock.advance(60)
        found.append(comparison.differs())
    assert found == [replaced, False]


class OwnReserve(HAScheduler):
    """Scheduler that gives an entry new arguments after each run."""

    def reserve(self, entry: Any) -> Any:
        entry.args = [entry.args[0] + 1]
        return entry


@pytest.mark.parametrize(("verdict", "loaded"), [(Verdict.ENQUEUED, False), (Verdict.SKIPPED, True)])
def test_entry_that_its_own_run_changes_is_not_loaded_again(verdict, loaded):
    """Otherwise each run would load the whole schedule. ``reserve`` is not called for a skipped occurrence."""
    scheduler = OwnReserve(app=Celery(set_as_current=False, broker="redis://"), lazy=True)
    scheduler.update_from_dict({"e": {"task": "t", "schedule": 5.0, "args": [1]}})
    source: Any = scheduler.schedule_source
    source._clock = source._comparison._clock = clock = SettableClock()
    (entry,) = source.load()
    assert not source._comparison.differs()
    source.recorded(entry, LedgerRow(NOW, verdict))
    if verdict is Verdict.SKIPPED:
        scheduler.reserve(entry.celery_entry)
    clock.advance(60)
    assert (scheduler.schedule["e"].args, source._comparison.differs()) == ([2], loaded)


def test_patch_made_after_the_start_is_found_by_the_next_load(monkeypatch):
    scheduler = HAScheduler(app=Celery(set_as_current=False, broker="redis://"), lazy=True)
    scheduler.update_from_dict({"e": {"task": "t", "schedule": 5.0}})
    source: Any = scheduler.schedule_source

    def found() -> tuple[bool, bool]:
        (entry,) = source.load()
        return entry.recurrence is None, source.hooks.replaces_reserve(entry.celery_entry)

    assert found() == (False, False)
    for name in ("is_due", "__next__"):
        monkeypatch.setattr(ScheduleEntry, name, lambda entry: entry)
    assert found() == (True, True)


def test_limit_of_crontabs_is_read_once_for_a_load():
    source = EntrySource(cast("Any", HAScheduler(app=Celery(set_as_current=False, broker="redis://"), lazy=True)))
    app = Celery(set_as_current=False)
    entries = [ScheduleEntry(name=name, task="t", schedule=crontab(app=app), app=app) for name in "ab"]
    for limit in (7, 8):
        app.conf.beat_cron_starting_deadline = limit
        source.detect_hooks()
        assert [source.rules.of(entry).misfire.grace for entry in entries] == [limit, limit]
