"""Reading and writing of rows, one turn of the two threads at a time, on a real database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import DataError, InternalError, OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import CrontabSchedule, PeriodicTask, PeriodicTasks, SolarSchedule

from ha_beat import events
from ha_beat.django.database import DjangoDatabase
from ha_beat.django.entries import RowEntry
from ha_beat.django.queries import DjangoQueries
from ha_beat.django.statements import DjangoStatements
from ha_beat.duties import Duties
from ha_beat.reasons import Duty, DutyFault, EntryFault, Verdict
from ha_beat.row_store.reader import RowReader
from ha_beat.row_store.run_state import RunStateTable
from ha_beat.row_store.sync import RowReading, RowWriting
from ha_beat.row_store.thread import DatabaseThread
from ha_beat.row_store.writer import RowWriter
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from tests.integration.django.project.app import app
from tests.integration.django.rows import at, cron, every, fresh, row, soon
from tests.support.clocks import SteppedClock

NOW = datetime.now(UTC).replace(microsecond=0)
_numbers = count(1)


def _now() -> datetime:
    return datetime.now(UTC)


class SyncedReplica:
    """Reader and writer of one replica, with a settable term. Their threads do not run."""

    def __init__(self) -> None:
        self.term: Term | None = None
        self.events: list[events.Event] = []
        self.clock = clock = SteppedClock()
        query = DjangoQueries(PeriodicTasks, lambda: PeriodicTask.objects.filter(enabled=True))
        self.reader = RowReader(
            query, lambda model: RowEntry(model, app), clock=clock, now=_now, emit=self.events.append
        )
        self.table = self.reader.table
        self.duties = Duties(clock, self.events.append)
        self.database = DjangoDatabase(list)
        run_state = RunStateTable(DjangoStatements(PeriodicTask, PeriodicTasks), self.database, _now)
        self.writer = RowWriter(run_state, self.table, clock)
        self.reading = RowReading(self.reader, term=lambda: self.term, duties=self.duties)
        self.writing = RowWriting(
            self.writer,
            self.reading,
            self.database,
            term=lambda: self.term,
            begin_term=lambda _: None,
            duties=self.duties,
            emit=self.events.append,
        )
        self.turn()

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.reading.turn()
            try:
                self.writing.turn()
            finally:
                self.reading.turn()

    def lead(self) -> None:
        number = next(_numbers)
        self.term = Term(f"replica {number}", number, f"nonce {number}", "gen", "run", float("inf"))
        self.turn(2)

    def ran(self, task: Any, ago: float, run_count: int) -> None:
        row = LedgerRow(NOW - timedelta(seconds=ago), Verdict.ENQUEUED, run_count=run_count)
        self.writer.record(str(task.pk), row)

    def entry(self, task: Any) -> RowEntry:
        return self.table.entries[str(task.pk)]

    @property
    def names(self) -> set[str]:
        return {entry.name for entry in self.table.entries.values()}


@pytest.fixture
def replica(any_site: object) -> SyncedReplica:
    """A leader that has read no row."""
    made = SyncedReplica()
    made.lead()
    return made


def state(task: Any) -> tuple[float, int]:
    """Return the age of the row's last run in seconds, and its run count."""
    task = fresh(task)
    return (NOW - task.last_run_at).total_seconds(), task.total_run_count


def read_only(*_: object, **__: object) -> None:
    raise InternalError("cannot execute UPDATE in a read-only transaction")


def fail(replica: SyncedReplica, kind: type[Exception] = InternalError) -> None:
    with pytest.raises(kind):
        replica.turn()


def test_runs_left_when_a_term_ends_are_written_once(replica):
    """A standby writes nothing after that."""
    task = row("task", interval=every(60))
    replica.turn()
    replica.ran(task, 60, 1)
    replica.term = None
    replica.turn()
    assert state(task) == (60.0, 1)
    PeriodicTask.objects.update(last_run_at=None, total_run_count=0)
    replica.turn(3)
    assert fresh(task).last_run_at is None


def test_finished_row_is_left_to_the_next_leader_when_a_term_ends(replica):
    """It may have been enabled again since."""
    task = row("task", clocked=at(soon(60)), one_off=True)
    replica.turn()
    replica.writer.disable_finished(replica.entry(task))
    replica.term = None
    replica.turn(2)
    assert fresh(task).enabled


def clocked_time_moved(task: Any) -> None:
    task.clocked.clocked_time = soon(60)
    task.clocked.save()


RESCHEDULED: dict[str, Any] = {
    "another clocked time": lambda task: PeriodicTask.objects.filter(pk=task.pk).update(clocked=at(soon(60))),
    "clocked time moved": clocked_time_moved,
    "made an interval": lambda task: PeriodicTask.objects.filter(pk=task.pk).update(clocked=None, interval=every(9)),
    "start": lambda task: PeriodicTask.objects.filter(pk=task.pk).update(start_time=soon(60)),
    "made recurring": lambda task: PeriodicTask.objects.filter(pk=task.pk).update(
        clocked=None, interval=every(9), one_off=False
    ),
}


@pytest.mark.parametrize("reschedule", RESCHEDULED.values(), ids=list(RESCHEDULED))
def test_one_off_row_with_another_schedule_after_its_run_stays_enabled(replica, reschedule):
    """Its own task may set its next run before the leader disables it."""
    task = row("task", clocked=at(soon(0)), one_off=True)
    replica.turn()
    reschedule(task)
    replica.writer.disable_finished(replica.entry(task))
    replica.turn()
    assert fresh(task).enabled


@pytest.mark.parametrize(
    "fields",
    [
        {"interval": lambda: every(60)},
        {"crontab": lambda: cron("5", timezone="Europe/Berlin")},
        {"clocked": lambda: at(soon(0)), "start_time": lambda: soon(-9)},
        {"solar": lambda: SolarSchedule.objects.create(event="sunset", latitude="48.1", longitude="11.6")},
    ],
    ids=["interval", "crontab", "clocked", "solar"],
)
def test_one_off_row_is_disabled_after_its_run(replica, fields):
    task = row("task", one_off=True, **{name: value() for name, value in fields.items()})
    replica.turn()
    PeriodicTask.objects.filter(pk=task.pk).update(description="a comment")
    replica.writer.disable_finished(replica.entry(task))
    replica.turn()
    assert not fresh(task).enabled


def test_row_is_disabled_and_marked_as_changed_or_neither(replica, monkeypatch):
    """On SQLite the mark may find the database locked. All replicas have to see it after the retry."""
    task = row("task", interval=every(60), one_off=True)
    replica.turn()
    other = SyncedReplica()
    replica.writer.disable_finished(replica.entry(task))
    with monkeypatch.context() as fault:
        fault.setattr(PeriodicTasks, "update_changed", lambda: 1 / 0)
        fail(replica, ZeroDivisionError)
    assert fresh(task).enabled
    replica.turn()
    other.turn()
    assert not fresh(task).enabled
    assert (replica.names, other.names) == (set(), set())


def test_late_write_of_the_old_leader_moves_no_row_back(replica):
    """No run counts twice, whichever leader writes first, and even if the new one had read the row before."""
    tasks = [row(f"task {number}", interval=every(60)) for number in range(12)]
    replica.turn()
    new = SyncedReplica()

    def run(which: SyncedReplica, ago: float, run_count: int) -> None:
        for task in tasks:
            which.ran(task, ago, run_count)

    run(replica, 300, 1)
    replica.turn()
    new.lead()
    run(replica, 240, 2)
    run(new, 180, 3)
    replica.term = None
    replica.turn()
    assert {state(task) for task in tasks} == {(240.0, 2)}
    new.turn()
    assert {state(task) for task in tasks} == {(180.0, 3)}
    # The old leader writes after the new one.
    run(replica, 240, 2)
    run(new, 120, 4)
    new.turn()
    replica.turn()
    assert {state(task) for task in tasks} == {(120.0, 4)}


def test_row_reset_by_hand_counts_on_and_disabled_row_is_left_alone(replica):
    reset, off = row("reset", interval=every(60)), row("off", interval=every(60))
    replica.turn()
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


def test_entries_with_one_schedule_share_it_until_it_is_edited(any_site):
    """Celery parses it once. An edit of the schedule reaches all of its rows."""
    crontab = cron(minute="5")
    tasks = [row(f"task {number}", crontab=crontab) for number in range(3)]
    own, standby = row("own", crontab=cron(minute="6")), SyncedReplica()
    assert len({id(standby.entry(task).schedule) for task in tasks}) == 1
    assert standby.entry(own).schedule is not standby.entry(tasks[0]).schedule
    before = standby.entry(tasks[0]).signature
    crontab.minute = "7"
    crontab.save()
    standby.turn()
    assert len({id(standby.entry(task).schedule) for task in tasks}) == 1
    assert standby.entry(tasks[0]).signature != before
    assert standby.entry(tasks[0]).instants.next_after(NOW).minute == 7


def test_schedule_that_is_replaced_while_its_row_is_read_is_no_error(replica):
    """Rows and schedules are read by separate queries."""
    task, old = row("task", crontab=cron(minute="5")), cron(minute="5")

    def replace(execute: Any, sql: str, *args: Any) -> Any:
        if "crontabschedule" in sql.split("WHERE", maxsplit=1)[0] and "JOIN" not in sql and old.pk:
            pk, old.pk = old.pk, None
            PeriodicTask.objects.filter(pk=task.pk).update(crontab=cron(minute="6"))
            CrontabSchedule.objects.filter(pk=pk).delete()
        return execute(sql, *args)

    with connection.execute_wrapper(replace):
        replica.turn()
    assert (old.pk, replica.events) == (None, [])
    assert replica.entry(task).instants.next_after(NOW).minute == 6


def test_joins_of_a_project_are_kept(any_site):
    """Its entries may read another table, and the main loop must not wait for the database."""
    task = row("task", crontab=cron(minute="5"))
    rows = DjangoQueries(PeriodicTasks, lambda: PeriodicTask.objects.filter(enabled=True).select_related("crontab"))
    with CaptureQueriesContext(connection) as queries:
        [(pk, model)] = rows.models([task.pk])
    assert (pk, model.crontab) == (task.pk, task.crontab)
    assert len(queries) == 1


def test_edits_take_effect_if_rows_cannot_be_written(replica, monkeypatch):
    """Because of a lock, a missing permission or a full disk."""
    task = row("task", interval=every(60))
    replica.turn()
    replica.ran(task, 60, 1)
    row("new", interval=every(60))
    monkeypatch.setattr(RunStateTable, "_advance", read_only)
    fail(replica)
    assert replica.names == {"task", "new"}


def test_failing_start_of_a_term_reads_all_rows_once(any_site, monkeypatch):
    """The settings' entries can't be written. The retries read only changes."""
    row("task", interval=every(60))
    replica = SyncedReplica()
    replica.writing._begin_term = read_only
    complete = replica.reader.complete
    replica.term = Term("replica", 1, "nonce", "gen", "run", float("inf"))
    replica.turn()
    for _ in range(3):
        fail(replica)
    assert replica.reader.complete == complete + 1
    row("new", interval=every(60))
    fail(replica)
    assert replica.names == {"task", "new"}
    assert replica.reading.read_in == "nonce"


@pytest.mark.parametrize("committed", [False, True])
def test_connection_lost_in_a_bulk_write_counts_each_run_once(postgres_site, committed, monkeypatch):
    """Before the commit, or after it with the reply lost: the outcome is unknown, and the retry is idempotent."""
    tasks = [row(f"task {number}", interval=every(60)) for number in range(30)]
    replica = SyncedReplica()
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
            replica.writing.turn()
    connections.close_all()
    assert fresh(tasks[1]).total_run_count == int(committed)
    replica.turn(2)
    assert [state(task) for task in tasks] == [(60.0 if n % 2 else float(n), 1) for n in range(30)]


def test_expired_row_is_disabled_although_its_run_is_refused(replica, monkeypatch):
    """The attempts at its run state do not use up those at its disabling."""
    task = row("task", interval=every(60), expires=soon(0.2))
    replica.turn()
    monkeypatch.setattr(RunStateTable, "advance", Mock(side_effect=DataError("integer out of range")))
    replica.ran(task, 60, 1)
    replica.turn()
    time.sleep(0.3)
    replica.clock.ahead += 2
    replica.turn()
    assert not fresh(task).enabled


@contextmanager
def locked(statement: str, *values: object) -> Iterator[None]:
    """Hold a transaction of another connection open, after this statement."""
    other = connections["default"].copy()
    other.set_autocommit(False)
    try:
        other.cursor().execute(statement, values)
        yield
    finally:
        other.close()


def refuse(task: Any) -> None:
    """Have the database refuse each write of the row's run state."""
    if connection.vendor == "postgresql":
        PeriodicTask.objects.filter(pk=task.pk).update(total_run_count=2**31 - 1)
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE OF last_run_at ON django_celery_beat_periodictask "
            f"WHEN old.id = {task.pk} BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )


def late(replica: SyncedReplica) -> dict[Duty, DutyFault]:
    return {duty: state.reason for duty, state in replica.duties.late().items()}


def test_row_that_cannot_be_written_is_named_and_holds_up_no_other(replica):
    """One-off rows are disabled, too."""
    tasks = [row(f"task {number}", interval=every(60)) for number in range(20)]
    once = row("once", interval=every(60), one_off=True)
    refuse(tasks[7])
    replica.turn()
    for task in tasks:
        replica.ran(task, 60, 2**31 if task is tasks[7] else 1)
    replica.writer.disable_finished(replica.entry(once))
    replica.turn()
    assert [fresh(task).last_run_at is not None for task in tasks] == [number != 7 for number in range(20)]
    assert not fresh(once).enabled
    assert late(replica) == {}
    replica.clock.ahead += 2
    replica.turn()
    assert late(replica) == {Duty.WRITE_ROWS: DutyFault.PARTIAL}
    failed = [event for event in replica.events if isinstance(event, events.EntryFailed)]
    assert [(event.entry, event.reason) for event in failed] == [("task 7", EntryFault.ROW_NOT_WRITTEN)]
    tasks[7].delete()
    replica.turn()
    assert late(replica) == {}


def test_locked_row_delays_only_its_own_run_state(postgres_site):
    """As of a long transaction that has edited its own row."""
    tasks = [row(f"task {number}", interval=every(60)) for number in range(20)]
    once = row("once", interval=every(60), one_off=True)
    replica = SyncedReplica()
    replica.lead()
    with locked("UPDATE django_celery_beat_periodictask SET description = 'x' WHERE id = %s", tasks[7].pk):
        for task in tasks:
            replica.ran(task, 60, 1)
        replica.writer.disable_finished(replica.entry(once))
        row("new", interval=every(60))
        replica.turn()
        assert replica.names == {task.name for task in tasks} | {"new"}
        assert [fresh(task).total_run_count for task in tasks] == [int(number != 7) for number in range(20)]
        replica.clock.ahead += 2
        replica.turn()
        assert late(replica) == {Duty.WRITE_ROWS: DutyFault.PARTIAL}
    replica.clock.ahead += 10
    replica.turn()
    assert state(tasks[7]) == (60.0, 1)
    assert late(replica) == {}


@pytest.mark.parametrize(
    ("table", "duties"), [("periodictask", [Duty.WRITE_ROWS]), ("periodictasks", [Duty.READ_SCHEDULE, Duty.WRITE_ROWS])]
)
def test_locked_table_ends_the_turns_and_is_reported(postgres_site, table, duties):
    """A turn ends within a few seconds, so that the next one can succeed. Changes are marked in the second table."""
    tasks = [row(f"task {number}", interval=every(60)) for number in range(20)]
    once = row("once", interval=every(60), one_off=True)
    replica = SyncedReplica()
    replica.lead()
    threads = [
        DatabaseThread(
            "test",
            duty,
            turn,
            app=app,
            database=replica.database,
            duties=replica.duties,
            interval=1.0,
            clock=replica.clock,
            emit=replica.events.append,
        )
        for duty, turn in ((Duty.READ_SCHEDULE, replica.reading.turn), (Duty.WRITE_ROWS, replica.writing.turn))
    ]
    for task in tasks:
        replica.ran(task, 60, 1)
    replica.writer.disable_finished(replica.entry(once))
    began = time.monotonic()
    with locked(f"LOCK TABLE django_celery_beat_{table} IN ACCESS EXCLUSIVE MODE"):
        for thread in threads:
            thread.turn()
        assert late(replica) == dict.fromkeys(duties, DutyFault.TIMED_OUT)
    assert time.monotonic() - began < 10
    for thread in threads:
        thread.turn()
    assert late(replica) == {}
    assert not fresh(once).enabled
    assert {state(task) for task in tasks} == {(60.0, 1)}


def test_stale_read_from_a_database_replica_is_harmless(replica, monkeypatch):
    """A router may send reads to a database replica. No run counts twice, and no row moves back."""
    task, once = row("task", interval=every(60)), row("once", interval=every(60), one_off=True)
    replica.turn()
    query = replica.reader._query
    stale, totals = query.page(None, 10), query.totals(None, None)
    monkeypatch.setattr(query, "page", lambda *_: stale)
    monkeypatch.setattr(query, "saved_since", lambda *_: [])
    monkeypatch.setattr(query, "totals", lambda *_: totals)
    for run_count in (1, 2, 3):
        replica.ran(task, 300 - 60 * run_count, run_count)
        replica.turn()
        replica.reader.begin_full_read()
        replica.reader.turn()
    assert state(task) == (120.0, 3)
    finished = replica.entry(once)
    for _ in range(2):
        replica.writer.disable_finished(finished)
        replica.turn()
        before = PeriodicTasks.last_change()
    assert not fresh(once).enabled
    assert PeriodicTasks.last_change() == before
