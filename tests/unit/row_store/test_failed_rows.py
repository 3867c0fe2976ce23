"""Search for the rows at fault, and retries of failed rows."""

from collections.abc import Sequence

import pytest

from ha_beat.row_store.backend import DatabaseFault
from ha_beat.row_store.failed_rows import LOCKED, FailedRows, write_with_bisection
from tests.support.clocks import SteppedClock

ROWS = [f"row {number}" for number in range(100)]


class Refused(Exception):
    """Error of the database with its kind."""

    def __init__(self, fault: DatabaseFault | None) -> None:
        super().__init__("refused")
        self.fault = fault


class Store:
    """Store that fails for some rows."""

    def __init__(self, bad: Sequence[str], fault: DatabaseFault | None, locked: Sequence[str] = ()) -> None:
        self.bad, self.fault, self.locked = set(bad), fault, set(locked)
        self.written: list[str] = []
        self.statements = 0

    def write(self, rows: Sequence[str]) -> list[str]:
        self.statements += 1
        if self.bad & set(rows):
            raise Refused(self.fault)
        self.written += [row for row in rows if row not in self.locked]
        return [row for row in rows if row in self.locked]

    def write_all(self, rows: Sequence[str] = ROWS, *, suspected: bool = False) -> dict[str, str]:
        return write_with_bisection(rows, self.write, lambda exc: getattr(exc, "fault", None), suspected=suspected)


@pytest.mark.parametrize("fault", [DatabaseFault.ROW, DatabaseFault.REFUSED, DatabaseFault.TIMED_OUT])
def test_rows_at_fault_are_found_and_all_others_are_written(fault):
    bad = ["row 7", "row 8", "row 9", "row 77"]
    store = Store(bad, fault, locked=["row 50"])
    faults = store.write_all()
    assert faults == {**dict.fromkeys(bad, "Refused: refused"), "row 50": LOCKED}
    assert sorted(store.written) == sorted(set(ROWS) - {*bad, "row 50"})
    assert store.statements < 60


@pytest.mark.parametrize("fault", [None, DatabaseFault.UNREACHABLE])
def test_error_that_ends_each_write_is_raised_without_a_search(fault):
    store = Store(["row 7"], fault)
    with pytest.raises(Refused):
        store.write_all()
    assert (store.statements, store.written) == (1, [])


@pytest.mark.parametrize(("count", "statements"), [(100, 22), (3, 6), (1, 1)])
def test_error_of_every_row_is_raised_unless_rows_are_at_fault(count, statements):
    """A missing permission or a full disk is not the fault of the rows."""
    rows = ROWS[:count]
    store = Store(rows, DatabaseFault.REFUSED)
    with pytest.raises(Refused):
        store.write_all(rows)
    assert store.statements <= statements
    assert set(Store(rows, DatabaseFault.ROW).write_all(rows)) == set(rows)


def test_many_rows_are_at_fault_once_another_row_was_written():
    store = Store(ROWS[::9], DatabaseFault.REFUSED)
    assert set(store.write_all()) == store.bad
    assert len(store.written) == len(ROWS) - len(store.bad)


def test_row_that_failed_while_others_were_written_is_at_fault():
    assert Store(ROWS, DatabaseFault.REFUSED).write_all(["row 7"], suspected=True) == {"row 7": "Refused: refused"}


def test_no_row_needs_no_statement():
    store = Store([], None)
    assert (store.write_all([]), store.statements) == ({}, 0)


def test_failed_row_is_retried_with_growing_pauses_and_reported():
    clock = SteppedClock()
    failed = FailedRows(clock)
    assert failed.split(["a", "b"]) == (["a", "b"], [])
    failed.add("a", "name", "detail")
    assert ("a" in failed, failed.split(["a", "b"]), failed.errors()) == (True, (["b"], []), {})
    for attempt in range(1, 12):
        clock.ahead += min(2 ** (attempt - 1), 300) - 0.5
        assert failed.split(["a", "b"]) == (["b"], [])
        clock.ahead += 1
        assert failed.split(["a", "b"]) == (["b"], ["a"])
        failed.add("a", "name", f"detail {attempt}")
        assert failed.errors() == {"name": f"detail {attempt}"}
    failed.keep_only({"a": None})
    assert "a" in failed
    failed.keep_only({"b": None})
    assert (failed.split(["a"]), failed.errors()) == ((["a"], []), {})
