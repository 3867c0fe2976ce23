"""Contract of each store of rows, one turn of the two threads at a time, on a real database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from ha_beat import events
from ha_beat.duties import Duties
from ha_beat.reasons import Duty, DutyFault, EntryFault, Verdict
from ha_beat.row_store import static_entries
from ha_beat.row_store.reader import RowReader
from ha_beat.row_store.run_state import RunStateTable
from ha_beat.row_store.sync import RowReading, RowWriting
from ha_beat.row_store.thread import DatabaseThread
from ha_beat.row_store.writer import RowWriter
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from tests.integration.django.conftest import _migrated_sqlite, postgres_site, site  # noqa: F401 -- fixtures
from tests.integration.row_store.conftest import Rows
from tests.support.clocks import SteppedClock

_numbers = count(1)


class Replica:
    """Reader and writer of one replica, with a settable term. Their threads do not run."""

    def __init__(self, rows: Rows, *, leads: bool = True) -> None:
        self.term: Term | None = None
        self.events: list[events.Event] = []
        self.clock = SteppedClock()
        self.store, self.rows = rows.store(), rows
        now, emit = lambda: datetime.now(UTC), self.events.append
        reader = RowReader(self.store.queries, self.store.make_entry, clock=self.clock, now=now, emit=emit)
        self.table = reader.table
        self.duties = Duties(self.clock, emit)
        run_state = RunStateTable(self.store.statements, self.store.database, now)
        self.writer = RowWriter(run_state, self.table, self.clock)
        term = lambda: self.term  # noqa: E731
        self.reading = RowReading(reader, term=term, duties=self.duties)
        self.writing = RowWriting(
            self.writer,
            self.reading,
            self.store.database,
            term=term,
            begin_term=lambda _: None,
            duties=self.duties,
            emit=emit,
        )
        self.turn()
        if leads:
            number = next(_numbers)
            self.term = Term(f"replica {number}", number, f"nonce {number}", "gen", "run", float("inf"))
            self.turn(2)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.reading.turn()
            self.writing.turn()
            self.reading.turn()

    def thread(self, duty: Duty) -> DatabaseThread:
        turn = {Duty.READ_SCHEDULE: self.reading.turn, Duty.WRITE_ROWS: self.writing.turn}[duty]
        return DatabaseThread(
            "test",
            duty,
            turn,
            app=self.rows.app,
            database=self.store.database,
            duties=self.duties,
            interval=1.0,
            clock=self.clock,
            emit=self.events.append,
        )

    def ran(self, name: str, at: datetime, run_count: int) -> None:
        self.writer.record(self.rows.id(name), LedgerRow(at, Verdict.ENQUEUED, run_count=run_count))

    def entry(self, name: str) -> Any:
        return self.table.entries[self.rows.id(name)]

    @property
    def names(self) -> set[str]:
        return {entry.name for entry in self.table.entries.values()}


def test_runs_are_written_in_bulk_and_never_move_back(rows, now):
    """Another leader has advanced one row since this replica read it."""
    names = [f"row {number}" for number in range(25)]
    for name in names:
        rows.add(name)
    replica, other = Replica(rows), Replica(rows)
    later = now + timedelta(seconds=1)
    other.ran("row 0", later, 7)
    other.turn()
    for number, name in enumerate(names):
        replica.ran(name, now if number < 12 else now - timedelta(seconds=number), 2)
    changed = rows.column("row 5", "date_changed")
    replica.turn()
    state = rows.state()
    assert state["row 0"] == (True, later, 7)
    assert state["row 5"] == (True, now, 2)
    assert state["row 20"] == (True, now - timedelta(seconds=20), 2)
    assert rows.column("row 5", "date_changed") == changed
    replica.turn()
    assert rows.state() == state
    replica.ran("row 0", later + timedelta(seconds=5), 8)
    replica.turn()
    assert rows.state()["row 0"] == (True, later + timedelta(seconds=5), 8)


def test_standby_touches_no_row_and_finds_each_edit_in_one_turn(rows):
    rows.add("kept")
    replica = Replica(rows, leads=False)
    before = rows.state()
    rows.add("new", one_off=True, args='["x"]')
    replica.turn()
    assert replica.names == {"kept", "new"}
    assert list(replica.entry("new").args) == ["x"]
    signature = replica.entry("kept").signature
    rows.save("kept", start_time=datetime(2030, 1, 1, tzinfo=UTC))
    rows.save("new", enabled=False)
    replica.turn()
    assert replica.names == {"kept"}
    assert replica.entry("kept").signature != signature
    rows.delete("new")
    rows.delete("kept")
    replica.turn()
    assert replica.names == set()
    assert before["kept"] == (True, None, 0)


def test_edit_without_a_mark_is_found_by_the_complete_read(rows):
    rows.add("task")
    replica = Replica(rows, leads=False)
    rows.update_in_bulk(enabled=False)
    replica.turn()
    assert replica.names == {"task"}
    replica.clock.ahead += 301
    replica.turn()
    assert replica.names == set()


@pytest.mark.parametrize("rescheduled", [False, True])
def test_finished_row_is_disabled_unless_it_was_rescheduled(rows, now, rescheduled):
    """Its own task may have set the next run. Another replica finds the change by its mark."""
    clocked = {"clocked_time": now + timedelta(seconds=60)}
    rows.add("clocked", "clocked", clocked, one_off=True)
    rows.add("once", one_off=True)
    replica, other = Replica(rows), Replica(rows, leads=False)
    for name in ("clocked", "once"):
        replica.writer.disable_finished(replica.entry(name))
    if rescheduled:
        rows.update_in_bulk(start_time=now + timedelta(days=1))
    replica.turn()
    assert [enabled for enabled, _, _ in rows.state().values()] == [rescheduled] * 2
    other.turn()
    assert other.names == ({"clocked", "once"} if rescheduled else set())


def test_expired_row_is_disabled_and_marked(rows, now):
    rows.add("expired", expires=now - timedelta(seconds=5))
    rows.add("later", expires=now + timedelta(days=1))
    other = Replica(rows, leads=False)
    Replica(rows).turn()
    assert {name: enabled for name, (enabled, _, _) in rows.state().items()} == {"expired": False, "later": True}
    other.turn()
    assert other.names == {"later"}


@pytest.mark.parametrize(
    ("kind", "schedule", "due"),
    [
        ("interval", {"every": 90, "period": "seconds"}, "2030-01-01T00:01:30"),
        ("crontab", {"minute": "30", "hour": "9", "timezone": "Asia/Tokyo"}, "2030-01-01T00:30:00"),
        ("clocked", {"clocked_time": datetime(2030, 1, 1, 5, tzinfo=UTC)}, "2030-01-01T05:00:00"),
        ("solar", {"event": "solar_noon", "latitude": 48.0, "longitude": 11.0}, "2030-01-01T11:19"),
    ],
)
def test_each_kind_of_schedule_is_due_at_its_instants(rows, kind, schedule, due):
    rows.add("task", kind, schedule, one_off=kind == "clocked")
    entry = Replica(rows, leads=False).entry("task")
    assert entry.instants.next_after(datetime(2030, 1, 1, tzinfo=UTC)).isoformat().startswith(due)
    assert entry.once is (kind == "clocked")


def test_unreadable_row_is_reported_and_others_are_read(rows):
    rows.add("good")
    rows.add("bad", args="not JSON")
    replica = Replica(rows, leads=False)
    assert replica.names == {"good"}
    [failed] = [event for event in replica.events if isinstance(event, events.EntryFailed)]
    assert (failed.entry, failed.reason) == ("bad", EntryFault.INVALID)


class Settings:
    """Entries of the settings, written as the leader writes them."""

    def __init__(self, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.rows, self.monkeypatch = rows.store(), rows, monkeypatch
        self.marks: dict[str, str] = {}
        self.failed: list[events.Event] = []

    def write(self, **entries: Any) -> set[str]:
        self.monkeypatch.setattr(static_entries, "static_entries", lambda _: entries)
        written = static_entries.write(
            self.rows.app, self.store.static, self.store.database, self.marks, 1000, self.failed.append
        )
        self.marks |= written
        return set(written)


def test_static_entry_is_written_once_and_an_edit_or_deletion_is_kept(rows, monkeypatch):
    from celery.schedules import crontab

    settings = Settings(rows, monkeypatch)
    entry = {"task": "tick", "schedule": 0.5, "options": {"queue": "q", "ha_beat": {"misfire": "all"}}}
    cron = {"task": "tick", "schedule": crontab(minute="5"), "options": {"expires": timedelta(seconds=2.5)}}
    assert settings.write(entry=entry, cron=cron) == {"entry", "cron"}
    replica = Replica(rows, leads=False)
    assert replica.entry("entry").options["ha_beat"] == {"misfire": "all"}
    assert replica.entry("entry").schedule.run_every == timedelta(seconds=0.5)
    assert rows.column("cron", "expire_seconds") == 3
    rows.save("entry", queue="edited")
    rows.delete("cron")
    assert settings.write(entry=entry, cron=cron) == set()
    assert rows.column("entry", "queue") == "edited"
    assert settings.write(entry={**entry, "args": [1]}, cron={**cron, "kwargs": {"a": 1}}) == {"entry", "cron"}
    assert (rows.column("entry", "queue"), rows.column("cron", "kwargs")) == ("q", '{"a": 1}')


def test_static_entry_that_no_row_holds_is_left_out_and_options_are_named(rows, monkeypatch, caplog):
    settings = Settings(rows, monkeypatch)
    long = {"task": "tick", "schedule": 5.0, "options": {"time_limit": 9}}
    with caplog.at_level("WARNING", "ha_beat"):
        assert settings.write(bad={"task": "tick", "schedule": "never"}, good=long) == {"good"}
    [failed] = settings.failed
    assert failed.entry == "bad"
    [dropped] = [record for record in caplog.records if getattr(record, "action", "") == "static_options_dropped"]
    assert dropped.options == ["time_limit"]


def _on_postgres(rows: Any) -> None:
    if rows.store().statements.skips_locked is False:
        pytest.skip("SQLite locks the whole database")


def test_locked_row_is_set_aside_and_others_are_written(rows, now):
    _on_postgres(rows)
    rows.add("locked")
    rows.add("free")
    replica = Replica(rows)
    for name in ("locked", "free"):
        replica.ran(name, now, 1)
    with rows.locked(f"SELECT * FROM {rows.table} WHERE name = 'locked' FOR UPDATE"):
        began = time.monotonic()
        replica.turn()
        assert time.monotonic() - began < 10
        assert {name: runs for name, (_, _, runs) in rows.state().items()} == {"locked": 0, "free": 1}
    replica.clock.ahead += 2
    replica.turn()
    assert rows.state()["locked"] == (True, now, 1)


def test_locked_table_and_lost_connection_end_a_turn_and_the_next_works(rows, now):
    _on_postgres(rows)
    rows.add("task", one_off=True)
    replica = Replica(rows)
    replica.writer.disable_finished(replica.entry("task"))
    write = replica.thread(Duty.WRITE_ROWS)

    def fault() -> DutyFault | None:
        late = replica.duties.late().get(Duty.WRITE_ROWS)
        return late and late.reason

    with rows.locked(f"LOCK TABLE {rows.marks} IN ACCESS EXCLUSIVE MODE"):
        write.turn()
        assert fault() is DutyFault.TIMED_OUT
    with rows.locked(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'"
    ):
        pass
    replica.clock.ahead += 2
    for _ in range(3):
        write.turn()
        replica.clock.ahead += 2
    assert rows.state()["task"][0] is False
    write.turn()
    assert fault() is None


def test_runs_that_the_previous_leader_did_not_write_are_read_in_pages(rows):
    """Each page is progress of the duty, which is otherwise late with a large schedule."""
    for name in "abc":
        rows.add(name)
    replica = Replica(rows)
    now = datetime.now(UTC).replace(microsecond=0)
    run = LedgerRow(now, Verdict.ENQUEUED, run_count=3)
    pages = [{rows.id("a"): run.encoded()}, {"gone": run.encoded()}, {rows.id("c"): run.encoded()}]
    progress: list[None] = []
    replica.writer._progress = lambda: progress.append(None)
    replica.writer.record_missing(pages)
    assert len(progress) == len(pages)
    replica.turn()
    assert [count for _, _, count in (rows.state()[name] for name in "abc")] == [3, 0, 3]


def test_later_run_recorded_while_a_page_of_the_ledger_is_read_is_kept(rows):
    rows.add("a")
    replica = Replica(rows)
    now, pk = datetime.now(UTC).replace(microsecond=0), rows.id("a")

    def pages() -> Iterator[dict[str, str]]:
        page = {pk: LedgerRow(now - timedelta(seconds=9), Verdict.ENQUEUED, run_count=3).encoded()}
        replica.writer.record(pk, LedgerRow(now, Verdict.ENQUEUED, run_count=4))
        yield page

    replica.writer.record_missing(pages())
    replica.turn()
    assert rows.state()["a"][2] == 4
