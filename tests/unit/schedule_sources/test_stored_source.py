"""Order in which the entries of a store are forecast and loaded, and the changes since a load."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from celery.schedules import schedule

from ha_beat.schedule.recurrence import Interval
from ha_beat.schedule_sources import stored_source
from ha_beat.schedule_sources.stored_source import StoredSource, Table
from tests.support.clocks import SteppedClock


def source_of(recurrences: dict[str, Any]) -> Any:
    """Return a source that has not read these entries yet."""
    source: Any = object.__new__(StoredSource)
    source._clock = SteppedClock()
    source.hooks = SimpleNamespace(replaces_is_due=lambda _: False)
    entries = {
        entry_id: SimpleNamespace(id=entry_id, instants=each, stored_last_run_at=None, since=None)
        for entry_id, each in recurrences.items()
    }
    source._runtime = SimpleNamespace(enqueuer=SimpleNamespace(now=lambda: datetime.now(UTC)))
    source._sync = SimpleNamespace(complete_reads=0, table=SimpleNamespace(entries=entries))
    return source


def every(seconds: float) -> Interval:
    return Interval(schedule(seconds))


def test_entries_are_forecast_soonest_first_once_all_have_been_read():
    hourly, failing = every(3600), SimpleNamespace(next_after=None)
    source = source_of({"a": hourly, "b": every(60), "c": hourly, "d": every(1), "e": failing})
    assert list(source.outlines()) == []
    source._sync.complete_reads = 1
    assert [entry_id for entry_id, *_ in source.outlines()] == ["e", "d", "b", "a", "c"]


def test_order_of_many_different_schedules_is_computed_for_a_short_time():
    """The main loop waits for it at each load."""

    class Slow(Interval):
        def next_after(self, instant: datetime) -> datetime:
            source._clock.ahead += 0.01
            return super().next_after(instant)

    source = source_of({str(number): Slow(schedule(1000 - number)) for number in range(500)})
    order = [int(entry.id) for entry in source._soonest_first()]
    assert source._clock.ahead <= stored_source._ORDER_BUDGET + 0.01
    computed = round(source._clock.ahead / 0.01)
    assert order == [*range(computed - 1, -1, -1), *range(computed, 500)]


def test_changes_beyond_the_memory_load_all_entries(monkeypatch):
    monkeypatch.setattr(stored_source, "_REMEMBERED", 3)
    table = Table(lambda _: None)
    assert table.changed_since(0) is None
    table._note_changed(["a"])
    table._note_changed(["b"])
    assert [table.changed_since(number) for number in range(3)] == [{"a", "b"}, {"b"}, set()]
    table._note_changed(["c", "d"])
    assert [table.changed_since(number) for number in range(4)] == [None, None, {"c", "d"}, set()]
    table._note_changed("efgh")
    assert [table.changed_since(number) for number in (3, 4)] == [None, set()]
