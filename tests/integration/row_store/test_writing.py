"""Contract of each store: run state is written once and never moves back, and one row does not delay the others."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest

from ha_beat.reasons import Duty, DutyFault, EntryFault, Verdict
from ha_beat.row_store.backend import DatabaseFault
from ha_beat.row_store.updates import RowUpdates
from ha_beat.store.ledger import LedgerRow
from tests.integration.django.conftest import _migrated_sqlite, postgres_site, site  # noqa: F401 -- fixtures
from tests.integration.row_store.replica import Replica

SECOND = timedelta(seconds=1)


#: SQLite locks the whole database.
databases_that_lock_rows = pytest.mark.parametrize("rows", ["django-postgres", "sqlalchemy-postgres"], indirect=True)


def add(rows: Any, count: int) -> list[str]:
    names = [f"row {number}" for number in range(count)]
    for name in names:
        rows.add(name)
    return names


def run_counts(rows: Any, names: list[str]) -> list[int]:
    state = rows.state()
    return [state[name][2] for name in names]


def test_runs_are_written_in_bulk_and_never_move_back(rows, now):
    """Another leader has advanced one row since this replica read it."""
    names = add(rows, 25)
    replica, other = Replica(rows), Replica(rows)
    later = now + SECOND
    other.ran("row 0", later, 7)
    other.turn()
    for number, name in enumerate(names):
        replica.ran(name, now if number < 12 else now - number * SECOND, 2)
    changed = rows.column("row 5", "date_changed")
    replica.turn()
    state = rows.state()
    assert state["row 0"] == (True, later, 7)
    assert state["row 5"] == (True, now, 2)
    assert state["row 20"] == (True, now - 20 * SECOND, 2)
    assert rows.column("row 5", "date_changed") == changed
    replica.turn()
    assert rows.state() == state
    replica.ran("row 0", later + 5 * SECOND, 8)
    replica.turn()
    assert rows.state()["row 0"] == (True, later + 5 * SECOND, 8)


def test_late_write_of_the_old_leader_moves_no_row_back(rows, now):
    """No run counts twice, whichever leader writes first, even if the new leader had read the row before."""
    names = add(rows, 12)
    old, new = Replica(rows), Replica(rows, leads=False)

    def run(which: Replica, ago: int, run_count: int) -> None:
        for name in names:
            which.ran(name, now - ago * SECOND, run_count)

    def states() -> set[Any]:
        return set(rows.state().values())

    run(old, 300, 1)
    old.turn()
    new.lead()
    run(old, 240, 2)
    run(new, 180, 3)
    old.term = None
    old.turn()
    assert states() == {(True, now - 240 * SECOND, 2)}
    new.turn()
    assert states() == {(True, now - 180 * SECOND, 3)}
    run(old, 240, 2)
    run(new, 120, 4)
    new.turn()
    old.turn()
    assert states() == {(True, now - 120 * SECOND, 4)}


def test_runs_left_when_a_term_ends_are_written_once(rows, now):
    """A finished row is left to the next leader, because it may have been enabled again."""
    rows.add("task")
    rows.add("once", one_off=True)
    replica = Replica(rows)
    replica.ran("task", now, 1)
    replica.finished("once")
    replica.term = None
    replica.turn()
    assert rows.state() == {"task": (True, now, 1), "once": (True, None, 0)}
    rows.update_in_bulk(last_run_at=None, total_run_count=0)
    replica.turn(3)
    assert rows.state() == {"task": (True, None, 0), "once": (True, None, 0)}


def test_row_reset_by_hand_counts_on_and_disabled_row_is_left_alone(rows, now):
    rows.add("task")
    replica = Replica(rows)
    for run_count, enabled in ((1, True), (2, False)):
        at = now + run_count * SECOND
        replica.ran("task", at, run_count)
        replica.turn()
        assert rows.state()["task"] == (True, at, run_count)
        rows.update_in_bulk(last_run_at=None, enabled=enabled)
    replica.ran("task", now + 3 * SECOND, 3)
    replica.turn()
    assert rows.state()["task"] == (False, None, 2)


@pytest.mark.parametrize("rescheduled", [False, True])
def test_finished_row_is_disabled_unless_it_was_rescheduled(rows, now, rescheduled):
    """The row's own task may have set its next run. Another replica finds the change by the mark."""
    clocked = {"clocked_time": now + timedelta(seconds=60)}
    rows.add("clocked", "clocked", clocked, one_off=True)
    rows.add("once", one_off=True)
    replica, other = Replica(rows), Replica(rows, leads=False)
    replica.finished("clocked", "once")
    if rescheduled:
        rows.update_in_bulk(start_time=now + timedelta(days=1))
    replica.turn()
    assert [enabled for enabled, _, _ in rows.state().values()] == [rescheduled] * 2
    other.turn()
    assert other.names == ({"clocked", "once"} if rescheduled else set())


def test_row_is_disabled_and_marked_as_changed_or_neither(rows, monkeypatch):
    """On SQLite the mark may find the database locked. All replicas have to see the change after the retry."""
    rows.add("task", one_off=True)
    replica, other = Replica(rows), Replica(rows, leads=False)
    replica.finished("task")
    with monkeypatch.context() as fault:
        fault.setattr(replica.store.statements, "_changes", Mock(update_changed=Mock(side_effect=ZeroDivisionError)))
        with pytest.raises(ZeroDivisionError):
            replica.turn()
    assert rows.state()["task"][0] is True
    replica.turn()
    other.turn()
    assert rows.state()["task"][0] is False
    assert (replica.names, other.names) == (set(), set())


def test_expired_row_is_disabled_and_marked(rows, now):
    rows.add("expired", expires=now - 5 * SECOND)
    rows.add("later", expires=now + timedelta(days=1))
    other = Replica(rows, leads=False)
    Replica(rows).turn()
    assert {name: enabled for name, (enabled, _, _) in rows.state().items()} == {"expired": False, "later": True}
    other.turn()
    assert other.names == {"later"}


def test_edits_take_effect_if_runs_cannot_be_written(rows, now, monkeypatch):
    """The cause may be a lock, a missing permission or a full disk."""
    rows.add("task")
    replica = Replica(rows)
    replica.ran("task", now, 1)
    rows.add("new")
    monkeypatch.setattr(RowUpdates, "advance", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        replica.turn()
    assert replica.names == {"task", "new"}


def test_expired_row_is_disabled_although_its_run_is_refused(rows, now, monkeypatch):
    """The retries of the run state do not delay the disabling."""
    rows.add("task")
    replica = Replica(rows)
    replica.ran("task", now, 1)
    monkeypatch.setattr(RowUpdates, "advance", Mock(side_effect=ZeroDivisionError))
    monkeypatch.setattr(replica.writer._updates, "fault", lambda _: DatabaseFault.ROW)
    rows.save("task", expires=now - SECOND)
    replica.turn()
    assert rows.state()["task"] == (False, None, 0)


def refuse(rows: Any, name: str) -> None:
    """Make the database refuse each write of the row's run state."""
    if rows.store().statements.skips_locked:
        rows.execute(f"UPDATE {rows.table} SET total_run_count = {2**31 - 1} WHERE name = '{name}'")
        return
    rows.execute(
        f"CREATE TRIGGER refuse BEFORE UPDATE OF last_run_at ON {rows.table} "
        f"WHEN old.name = '{name}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )


def test_row_that_cannot_be_written_is_named_and_holds_up_no_other(rows, now):
    names = add(rows, 20)
    rows.add("once", one_off=True)
    refuse(rows, "row 7")
    replica = Replica(rows)
    for name in names:
        replica.ran(name, now, 2**31 if name == "row 7" else 1)
    replica.finished("once")
    replica.turn()
    state = rows.state()
    assert [name for name in names if state[name][1] is None] == ["row 7"]
    assert state["once"][0] is False
    assert replica.late() == {}
    replica.clock.ahead += 2
    replica.turn()
    assert replica.late() == {Duty.WRITE_ROWS: DutyFault.PARTIAL}
    assert replica.failed_entries() == [("row 7", EntryFault.ROW_NOT_WRITTEN)]
    rows.delete("row 7")
    replica.turn()
    assert replica.late() == {}


@databases_that_lock_rows
def test_locked_row_delays_only_its_own_run_state(rows, now):
    """A long transaction has edited this row."""
    names = add(rows, 20)
    rows.add("once", one_off=True)
    replica = Replica(rows)
    with rows.locked(f"UPDATE {rows.table} SET description = 'x' WHERE name = 'row 7'"):
        for name in names:
            replica.ran(name, now, 1)
        replica.finished("once")
        rows.add("new")
        began = time.monotonic()
        replica.turn()
        assert time.monotonic() - began < 10
        assert replica.names == {*names, "new"}
        assert run_counts(rows, names) == [int(name != "row 7") for name in names]
        replica.clock.ahead += 2
        replica.turn()
        assert replica.late() == {Duty.WRITE_ROWS: DutyFault.PARTIAL}
    replica.clock.ahead += 10
    replica.turn()
    assert rows.state()["row 7"] == (True, now, 1)
    assert replica.late() == {}


@databases_that_lock_rows
@pytest.mark.parametrize("locked", ["table", "marks"])
def test_locked_table_ends_the_turns_and_is_reported(rows, now, locked):
    """A turn ends within a few seconds, so that the next one can succeed. Changes are marked in the second table."""
    names = add(rows, 20)
    rows.add("once", one_off=True)
    replica = Replica(rows)
    threads = (replica.sync.reading, replica.sync.writing)
    for name in names:
        replica.ran(name, now, 1)
    replica.finished("once")
    began = time.monotonic()
    with rows.locked(f"LOCK TABLE {getattr(rows, locked)} IN ACCESS EXCLUSIVE MODE"):
        for thread in threads:
            thread.turn()
        late = {"table": [Duty.WRITE_ROWS], "marks": [Duty.READ_SCHEDULE, Duty.WRITE_ROWS]}[locked]
        assert replica.late() == dict.fromkeys(late, DutyFault.TIMED_OUT)
    assert time.monotonic() - began < 10
    for thread in threads:
        thread.turn()
    assert replica.late() == {}
    assert rows.state() == {**dict.fromkeys(names, (True, now, 1)), "once": (False, None, 0)}


@databases_that_lock_rows
def test_writing_works_again_after_a_lost_connection(rows):
    rows.add("task", one_off=True)
    replica = Replica(rows)
    replica.finished("task")
    with rows.locked(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    ):
        pass
    for _ in range(3):
        replica.sync.writing.turn()
        replica.clock.ahead += 2
    assert rows.state()["task"][0] is False
    replica.sync.writing.turn()
    assert replica.late() == {}


def test_runs_that_the_previous_leader_did_not_write_are_read_in_pages(rows, now):
    """Each page counts as progress of the duty, or the duty would be late with a large schedule."""
    for name in "abc":
        rows.add(name)
    replica = Replica(rows)
    run = LedgerRow(now, Verdict.ENQUEUED, run_count=3)
    pages = [{rows.id("a"): run.encoded()}, {"gone": run.encoded()}, {rows.id("c"): run.encoded()}]
    replica.writer._progress = progress = Mock()
    replica.writer.record_missing(pages)
    assert progress.call_count == len(pages)
    replica.turn()
    assert run_counts(rows, ["a", "b", "c"]) == [3, 0, 3]


def test_later_run_recorded_while_a_page_of_the_ledger_is_read_is_kept(rows, now):
    rows.add("a")
    replica = Replica(rows)

    def pages() -> Iterator[dict[str, str]]:
        page = {rows.id("a"): LedgerRow(now - 9 * SECOND, Verdict.ENQUEUED, run_count=3).encoded()}
        replica.ran("a", now, 4)
        yield page

    replica.writer.record_missing(pages())
    replica.turn()
    assert run_counts(rows, ["a"]) == [4]
