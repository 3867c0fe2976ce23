"""Rows in memory: edits, rows that vanish between two queries, removals, unreadable rows."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.reasons import EntryFault
from ha_beat.row_store.backend import Row
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.table import RowTable

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Entry(RowEntry):
    """Entry of a number, which stands for the model. A negative one can't be read."""

    def __init__(self, model: int) -> None:
        if model < 0:
            raise ValueError("negative")
        self.id, self.model, self.expires, self.since = str(model), model, None, None


class Queries:
    """Second query: the models of the rows that are still enabled."""

    def __init__(self) -> None:
        self.vanished: set[int] = set()
        self.unreadable: set[int] = set()

    def models(self, ids: Sequence[int]) -> list[tuple[int, Any]]:
        return [(pk, -pk if pk in self.unreadable else pk) for pk in ids if pk not in self.vanished]

    def existing(self, ids: Sequence[str]) -> set[str]:
        return set(ids) - {str(pk) for pk in self.vanished}


class Table:
    """Table with the events that it emitted."""

    def __init__(self) -> None:
        self.queries: Any = Queries()
        self.events: list[events.Event] = []
        self.table = RowTable(self.queries, Entry, self.events.append)

    def apply(self, *rows: Row, absent: Sequence[int] = (), checked_at: datetime | None = NOW - SECOND) -> None:
        self.table.apply(rows, absent, checked_at, NOW)

    @property
    def ids(self) -> set[str]:
        return set(self.table.entries)


@pytest.fixture
def table() -> Table:
    return Table()


def row(pk: int, version: int = 0, *, run_count: int = 0, changed: datetime | None = NOW - 9 * SECOND) -> Row:
    return Row(pk, (f"row {pk}", version), None, run_count, changed)


def test_row_that_vanishes_between_the_queries_is_removed(table):
    table.apply(row(1), row(2), row(3))
    before = table.table.number
    table.queries.vanished = {2}
    table.apply(row(1), row(2, 1), row(3))
    assert table.ids == {"1", "3"}
    assert table.table.totals == (2, 4)
    assert set(table.table.known) == {1, 3}
    assert table.table.removed() == {"2": before + 1}
    assert table.table.changed_since(before) == {"2"}
    assert table.table.number == before + 1


def test_row_that_vanishes_before_it_was_known_is_left_out(table):
    table.apply(row(1))
    before = table.table.number
    table.queries.vanished = {2}
    table.apply(row(1), row(2))
    assert (table.ids, table.table.totals, table.table.removed()) == ({"1"}, (1, 1), {})
    assert table.table.number == before
    table.queries.vanished = set()
    table.apply(row(1), row(2))
    assert (table.ids, table.table.totals) == ({"1", "2"}, (2, 3))


@pytest.mark.parametrize(
    ("checked_at", "changed", "run_count", "since"),
    [
        (NOW - 5 * SECOND, NOW - 2 * SECOND, 0, NOW - 2 * SECOND),
        (NOW - 5 * SECOND, NOW - 2 * SECOND, 7, NOW - 2 * SECOND),
        (NOW - 5 * SECOND, NOW - 9 * SECOND, 7, NOW - 5 * SECOND),
        (NOW - 5 * SECOND, NOW + 9 * SECOND, 7, NOW),
        (NOW - 5 * SECOND, None, 7, None),
        (None, NOW - 9 * SECOND, 0, NOW - 9 * SECOND),
        (None, NOW - 9 * SECOND, 7, None),
    ],
    ids=["new", "edited", "saved late", "clock ahead", "no time", "first read", "first read of a row that has run"],
)
def test_new_or_edited_row_is_owed_its_instants_since_the_edit(table, checked_at, changed, run_count, since):
    table.apply(row(1, run_count=run_count, changed=changed), checked_at=checked_at)
    assert table.table.entries["1"].since == since


def test_unchanged_row_keeps_its_entry_and_has_its_run_state_updated(table):
    table.apply(row(1))
    entry, number = table.table.entries["1"], table.table.number
    table.apply(row(1, run_count=3))
    assert table.table.entries["1"] is entry
    assert (entry.run_state, entry.since) == ((None, 3), NOW - SECOND)
    assert table.table.number == number


def test_row_that_becomes_unreadable_is_reported_once_and_stays_known(table):
    table.apply(row(1), row(2))
    table.queries.unreadable = {2}
    for _ in range(2):
        table.apply(row(1), row(2, 1))
    assert table.ids == {"1"}
    assert table.table.totals == (2, 3)
    assert [(event.entry, event.reason) for event in table.events] == [("row 2", EntryFault.INVALID)]
    assert set(table.table.removed()) == {"2"}


def test_table_stays_as_it_was_if_an_edit_time_cannot_be_read(table, monkeypatch):
    table.apply(row(1), row(2))
    known, number = dict(table.table.entries), table.table.number
    monkeypatch.setattr(Entry, "changed_at", staticmethod(lambda _: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        table.apply(row(1, 1), absent=[2])
    assert (table.table.entries, table.table.number, table.table.removed()) == (known, number, {})
    assert table.table.totals == (2, 3)


def test_removal_is_forgotten_when_recorded_or_when_the_row_is_deleted(table):
    table.apply(row(1), row(2), row(3))
    table.apply(absent=[1, 2, 3, 4])
    removed = table.table.removed()
    assert removed == {"1": 2, "2": 2, "3": 2}
    table.table.forget_removed("1", 1)
    table.table.forget_removed("2", 2)
    table.queries.vanished = {3}
    table.table.forget_deleted()
    assert table.table.removed() == {"1": 2}
