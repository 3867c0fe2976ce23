"""The thread that reads the schedule and writes the rows, turned by hand on a real database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from django.db import InternalError, OperationalError, connections
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.django.entries import RowEntry
from ha_beat.django.row_reader import RowReader
from ha_beat.django.row_sync import RowSync
from ha_beat.django.row_writer import RowWriter, Run
from ha_beat.store.lease import Term
from tests.integration.django.beats import at, cron, every, fresh, row, soon
from tests.integration.django.project.app import app

NOW = datetime.now(UTC).replace(microsecond=0)
_numbers = count(1)


def _now() -> datetime:
    return datetime.now(UTC)


class Desk:
    """One replica's thread, and its term."""

    def __init__(self) -> None:
        self.term: Term | None = None
        self.positions: dict[str, datetime] = {}
        self.told: list[events.Event] = []
        self.reader = RowReader(
            changes=PeriodicTasks,
            enabled=lambda: PeriodicTask.objects.filter(enabled=True),
            make_entry=lambda model: RowEntry(model, app),
            clock=SystemClock(),
            now=_now,
            emit=self.told.append,
        )
        self.writer = RowWriter(PeriodicTask, PeriodicTasks, _now, lambda: self.reader.snapshot.by_id)
        self.rows = RowSync(
            app=app,
            reader=self.reader,
            writer=self.writer,
            clock=SystemClock(),
            term=lambda: self.term,
            begin_term=lambda _: None,
            emit=self.told.append,
            position=self.positions.get,
        )
        self.turn()

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.rows._sync()

    def lead(self) -> None:
        number = next(_numbers)
        self.term = Term(f"replica {number}", number, f"nonce {number}", "gen", "run", float("inf"))
        self.turn(2)

    def ran(self, task: Any, ago: float, run_count: int) -> None:
        self.writer.record_run(str(task.pk), Run(NOW - timedelta(seconds=ago), run_count))


@pytest.fixture
def desk(any_site: object) -> Callable[[], Desk]:
    return Desk


def state(task: Any) -> tuple[float, int]:
    """How long ago its row says that it ran, and how often."""
    task = fresh(task)
    return (NOW - task.last_run_at).total_seconds(), task.total_run_count


def test_what_is_left_of_a_term_is_written_when_it_ends(desk):
    """Once; from then on the replica, which stands by, writes nothing."""
    task = row("task", interval=every(60))
    replica = desk()
    replica.lead()
    replica.ran(task, 60, 1)
    replica.term = None
    replica.turn()
    assert state(task) == (60.0, 1)
    PeriodicTask.objects.update(last_run_at=None, total_run_count=0)
    replica.turn(3)
    assert fresh(task).last_run_at is None


def test_one_that_was_to_be_disabled_is_left_to_the_next_leader(desk):
    """Who has led since, or the row's owner, may have switched it on again."""
    task = row("task", clocked=at(soon(60)), one_off=True)
    replica = desk()
    replica.lead()
    replica.writer.disable_finished(str(task.pk))
    replica.term = None
    replica.turn(2)
    assert fresh(task).enabled


def test_a_row_is_disabled_and_marked_as_changed_or_neither(desk, monkeypatch):
    """On SQLite the mark may find the database locked; all replicas have to see it at the next try."""
    task = row("task", interval=every(60), one_off=True)
    replica, other = desk(), desk()
    replica.lead()
    replica.writer.disable_finished(str(task.pk))
    with monkeypatch.context() as fault:
        fault.setattr(PeriodicTasks, "update_changed", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            replica.turn()
    assert fresh(task).enabled
    replica.turn()
    other.turn()
    assert not fresh(task).enabled
    assert [each.reader.snapshot.by_name for each in (replica, other)] == [{}, {}]


def test_a_late_write_of_the_last_leader_moves_no_row_back_and_counts_no_run_twice(desk):
    """Whichever of the two writes first, and though the new leader had read the row before."""
    tasks = [row(f"task {number}", interval=every(60)) for number in range(12)]
    before, after = desk(), desk()
    before.lead()
    for task in tasks:
        before.ran(task, 300, 1)
    before.turn()
    after.lead()
    for task in tasks:
        before.ran(task, 240, 2)
        after.ran(task, 180, 3)
    before.term = None
    before.turn()
    assert {state(task) for task in tasks} == {(240.0, 2)}
    after.turn()
    assert {state(task) for task in tasks} == {(180.0, 3)}
    # And the other way round: woken late, it still has something to say.
    for task in tasks:
        before.ran(task, 240, 2)
        after.ran(task, 120, 4)
    after.turn()
    before.turn()
    assert {state(task) for task in tasks} == {(120.0, 4)}


def test_rows_that_ran_at_instants_of_their_own_are_written_alike(desk):
    """Few for each instant: one statement for all of them. One that another leader has written is seen as well."""
    tasks = [row(f"task {number}", interval=every(60 + number)) for number in range(5)]
    replica, other = desk(), desk()
    replica.lead()
    for number, task in enumerate(tasks):
        replica.ran(task, 300 + number, 1 + number)
    replica.turn()
    assert [state(task) for task in tasks] == [(300.0 + n, 1 + n) for n in range(5)]
    other.lead()
    other.ran(tasks[0], 200, 2)
    other.turn()
    for number, task in enumerate(tasks):
        replica.ran(task, 100 + number, 3 + number)
    replica.turn()
    assert [state(task) for task in tasks] == [(100.0 + n, 3 + n) for n in range(5)]


def test_what_was_reset_by_hand_is_counted_on_from_there(desk):
    """As after dcb's reset of last_run_at; a row that was switched off meanwhile is left alone."""
    reset, off = row("reset", interval=every(60)), row("off", interval=every(60))
    replica = desk()
    replica.lead()
    for task in (reset, off):
        replica.ran(task, 60, 1)
    replica.turn()
    PeriodicTask.objects.update(last_run_at=None)
    PeriodicTask.objects.filter(pk=off.pk).update(enabled=False)
    for task in (reset, off):
        replica.ran(task, 30, 2)
    replica.turn()
    assert state(reset) == (30.0, 2)
    assert fresh(off).last_run_at is None


def test_a_standby_has_the_next_instant_of_every_row_ready(desk, monkeypatch):
    """From where the cluster stands, so that a takeover computes none of them."""
    tasks = [row(f"task {minute}", crontab=cron(minute=str(minute))) for minute in range(3)]
    standby = desk()
    position = NOW - timedelta(hours=3)
    standby.positions |= {str(task.pk): position for task in tasks}
    standby.turn()
    asked = []
    monkeypatch.setattr("ha_beat.schedule.recurrence.Crontab._search", lambda _, instant: asked.append(instant))
    found = [entry.instants.next_after(position) for entry in standby.reader.snapshot.by_name.values()]
    assert all(position < instant <= position + timedelta(hours=1) for instant in found)
    assert asked == []


def test_the_schedule_is_read_though_rows_cannot_be_written(desk, monkeypatch):
    """A lock, a right, a disk that is full: what is edited in the admin counts all the same."""
    task = row("task", interval=every(60))
    replica = desk()
    replica.lead()
    replica.ran(task, 60, 1)
    row("new", interval=every(60))
    monkeypatch.setattr(replica.writer, "_write_runs", _read_only)
    with pytest.raises(InternalError):
        replica.turn()
    assert set(replica.reader.snapshot.by_name) == {"task", "new"}


def test_a_term_that_cannot_begin_in_the_database_reads_it_once_and_then_its_changes(desk, monkeypatch):
    """The settings' entries can't be written. That is tried again each second, and all rows are not read for it."""
    row("task", interval=every(60))
    replica = desk()
    replica.rows._begin_term = _read_only
    readings = []
    read = replica.reader.read
    monkeypatch.setattr(replica.reader, "read", lambda: (readings.append(1), read()))
    replica.term = Term("replica", 1, "nonce", "gen", "run", float("inf"))
    replica.turn()
    for _ in range(3):
        with pytest.raises(InternalError):
            replica.turn()
    assert len(readings) == 1
    row("new", interval=every(60))
    with pytest.raises(InternalError):
        replica.turn()
    assert set(replica.reader.snapshot.by_name) == {"task", "new"}
    assert replica.rows.read_in == "nonce"


def _read_only(*_: object, **__: object) -> None:
    raise InternalError("cannot execute UPDATE in a read-only transaction")


@pytest.mark.parametrize("committed", [False, True])
def test_a_connection_that_breaks_in_a_bulk_write_counts_each_run_once(postgres_site, committed, monkeypatch):
    """Before the commit, or after it with the reply lost: nobody knows which, and the rows are right in the end."""
    tasks = [row(f"task {number}", interval=every(60)) for number in range(30)]
    replica = Desk()
    replica.lead()
    for number, task in enumerate(tasks):
        replica.ran(task, 60 if number % 2 else number, 1)
    connection = connections["default"]
    commit = connection._commit

    def cut() -> None:
        if committed:
            commit()
        with connection.wrap_database_errors:
            connection.connection.cursor().execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with monkeypatch.context() as fault:
        fault.setattr(connection, "_commit", cut)
        with pytest.raises(OperationalError):
            replica.turn()
    connections.close_all()
    assert fresh(tasks[1]).total_run_count == int(committed)
    replica.turn(2)
    assert [state(task) for task in tasks] == [(60.0 if n % 2 else float(n), 1) for n in range(30)]


def test_rows_updated_in_bulk_are_read_when_that_is_said_or_within_minutes(desk):
    """Django tells nobody of ``QuerySet.update()``. What the new schedule had due before it was read is not owed."""
    tasks = [row(f"task {number}", interval=every(3600)) for number in range(2)]
    replica = desk()
    before = replica.reader.snapshot.number
    for number, told in enumerate((True, False)):
        PeriodicTask.objects.filter(pk=tasks[number].pk).update(interval=every(60))
        if told:
            PeriodicTasks.update_changed()
        else:
            replica.turn()
            assert replica.reader.snapshot.number == before + 1
            replica.reader._full_read_due = replica.reader._clock.elapsed()
        looked = replica.reader._checked_at
        replica.turn()
        snapshot = replica.reader.snapshot
        assert snapshot.number == before + 1 + number
        entry = snapshot.by_name[tasks[number].name]
        assert entry.schedule.run_every == timedelta(seconds=60)
        assert entry.since == looked


def test_what_is_read_may_lag_behind_what_is_written(desk, monkeypatch):
    """A router reads from a replica of the database: no run is counted twice, none is moved back."""
    task, once = row("task", interval=every(60)), row("once", interval=every(60), one_off=True)
    replica = desk()
    replica.lead()
    stale = replica.reader._select()
    monkeypatch.setattr(replica.reader, "_select", lambda: stale)
    for run_count in (1, 2, 3):
        replica.ran(task, 300 - 60 * run_count, run_count)
        replica.turn()
        replica.reader.read()
    assert state(task) == (120.0, 3)
    for _ in range(2):
        replica.writer.disable_finished(str(once.pk))
        replica.turn()
        before = PeriodicTasks.last_change()
    assert not fresh(once).enabled
    assert PeriodicTasks.last_change() == before
