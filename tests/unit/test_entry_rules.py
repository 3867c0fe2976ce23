"""Rules of an entry on their way from each schedule source to the leader."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ha_beat.reasons import MisfirePolicy, UncertainPolicy
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule_source import EntrySource
from ha_beat.stored_schedule import StoredSource

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
