"""Schedule that a store holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ha_beat.stored_schedule import StoredSource


def test_entries_are_forecast_once_all_have_been_read():
    source: Any = object.__new__(StoredSource)
    source.asks = lambda _: False
    entry = SimpleNamespace(id="1", instants=None, stored_last_run_at=None)
    source._sync = SimpleNamespace(complete=0, table=SimpleNamespace(entries={"1": entry}))
    assert list(source.outlines()) == []
    source._sync.complete = 1
    assert [entry_id for entry_id, *_ in source.outlines()] == ["1"]
