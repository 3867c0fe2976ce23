"""Contract of each store: each edit of a row is read, and a standby writes nothing."""

from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.reasons import EntryFault
from tests.integration.django.conftest import _migrated_sqlite, postgres_site, site  # noqa: F401 -- fixtures
from tests.integration.row_store.replica import Replica


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


@pytest.mark.parametrize(
    ("kind", "schedule", "due"),
    [
        ("interval", {"every": 90, "period": "seconds"}, "2030-01-01T00:01:30"),
        ("crontab", {"minute": "30", "hour": "9", "timezone": "Asia/Tokyo"}, "2030-01-01T00:30:00"),
        ("clocked", {"clocked_time": datetime(2030, 1, 1, 5, tzinfo=UTC)}, "2030-01-01T05:00:00"),
        ("solar", {"event": "solar_noon", "latitude": 48.0, "longitude": 11.0}, "2030-01-01T11:19"),
    ],
)
def test_each_kind_of_row_is_due_at_its_instants_and_disabled_after_a_run(rows, now, kind, schedule, due):
    rows.add("task", kind, schedule, one_off=True, start_time=now - timedelta(days=1) if kind == "clocked" else None)
    rows.add("recurring", kind, schedule, one_off=kind == "clocked")
    replica = Replica(rows)
    entry = replica.entry("recurring")
    assert entry.instants.next_after(datetime(2030, 1, 1, tzinfo=UTC)).isoformat().startswith(due)
    assert entry.once is (kind == "clocked")
    # An edit without another schedule is no reason to run the row again.
    rows.update_in_bulk(description="a comment")
    replica.finished("task")
    replica.turn()
    assert rows.state()["task"][0] is False


def test_unreadable_row_is_reported_and_others_are_read(rows):
    rows.add("good")
    rows.add("bad", args="not JSON")
    replica = Replica(rows, leads=False)
    assert replica.names == {"good"}
    assert replica.failed_entries() == [("bad", EntryFault.INVALID)]
    assert rows.state()["bad"][0] is True


def test_stale_read_from_a_database_replica_is_harmless(rows, now, monkeypatch):
    """A router may send reads to a database replica. No run counts twice, and no row moves back."""
    rows.add("task")
    rows.add("once", one_off=True)
    replica = Replica(rows)
    query = replica.store.queries
    stale, totals = query.page(None, 10), query.totals(None, None)
    monkeypatch.setattr(query, "page", lambda *_: stale)
    monkeypatch.setattr(query, "saved_since", lambda *_: [])
    monkeypatch.setattr(query, "totals", lambda *_: totals)
    for run_count in (1, 2, 3):
        replica.ran("task", now + timedelta(seconds=run_count - 10), run_count)
        replica.turn()
        replica.reader.begin_full_read()
        replica.reader.turn()
    assert rows.state()["task"] == (True, now - timedelta(seconds=7), 3)
    finished = replica.entry("once")
    for _ in range(2):
        replica.writer.disable_finished(finished)
        replica.turn()
        before = query.last_change()
    assert rows.state()["once"][0] is False
    assert query.last_change() == before


def test_failing_start_of_a_term_reads_all_rows_once(rows):
    """If the entries of the settings can't be written, the retries read only changes."""
    rows.add("task")
    replica = Replica(rows, leads=False)
    complete = replica.reader.complete_reads

    def fail(_: object) -> None:
        raise ZeroDivisionError

    replica.sync.writing._begin_term = fail
    with pytest.raises(ZeroDivisionError):
        replica.lead()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            replica.turn()
    assert replica.reader.complete_reads == complete + 1
    rows.add("new")
    with pytest.raises(ZeroDivisionError):
        replica.turn()
    assert replica.names == {"task", "new"}
    assert replica.sync.read_in == replica.term.nonce
