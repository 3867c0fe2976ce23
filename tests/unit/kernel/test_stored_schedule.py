"""Schedule that a store holds."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from celery.schedules import schedule

from ha_beat.schedule.recurrence import Interval
from ha_beat.stored_schedule import StoredSource


def test_entries_are_forecast_soonest_first_once_all_have_been_read():
    source: Any = object.__new__(StoredSource)
    source.asks = lambda _: False
    hourly, failing = Interval(schedule(3600)), SimpleNamespace(next_after=None)
    instants = {"a": hourly, "b": Interval(schedule(60)), "c": hourly, "d": Interval(schedule(1)), "e": failing}
    entries = {
        entry_id: SimpleNamespace(id=entry_id, instants=each, stored_last_run_at=None, since=None)
        for entry_id, each in instants.items()
    }
    source._runtime = SimpleNamespace(enqueuer=SimpleNamespace(now=lambda: datetime.now(UTC)))
    source._sync = SimpleNamespace(complete=0, table=SimpleNamespace(entries=entries))
    assert list(source.outlines()) == []
    source._sync.complete = 1
    assert [entry_id for entry_id, *_ in source.outlines()] == ["e", "d", "b", "a", "c"]
