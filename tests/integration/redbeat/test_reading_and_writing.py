"""Reading and writing of redbeat's entries, one turn at a time: malformed records, failed reads, wrong clocks."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import schedule

from ha_beat import events
from ha_beat.errors import StoreError
from ha_beat.reasons import EntryFault, Verdict
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from tests.support.clocks import SteppedClock
from tests.support.servers import RedisServer

redbeat = pytest.importorskip("redbeat")

from ha_beat.redbeat.connection import connect, keys_of  # noqa: E402
from ha_beat.redbeat.entries import EntryTable, StoredEntry, meta_of, run_state_of  # noqa: E402
from ha_beat.redbeat.invalidations import Invalidations  # noqa: E402
from ha_beat.redbeat.reader import EntryReader  # noqa: E402
from ha_beat.redbeat.run_writer import RunWriter  # noqa: E402
from ha_beat.redbeat.static_entries import StaticEntries  # noqa: E402
from ha_beat.redbeat.store import Record, RedBeatStore  # noqa: E402
from ha_beat.redbeat.writer import EntryWriter  # noqa: E402

NOWHERE = {"__type__": "datetime", "year": 2020, "month": 1, "day": 1, "timezone": "Nowhere/Land"}


class Replica:
    """Reader and writer of a leader without its thread."""

    def __init__(self, server: RedisServer, prefix: str = "redbeat:") -> None:
        self.server = server
        self.app = Celery("red", broker=server.url, set_as_current=False)
        self.app.conf.update(
            timezone="UTC", redbeat_redis_url=server.url, result_expires=None, redbeat_key_prefix=prefix
        )
        self.events: list[events.Event] = []
        self.clock = SteppedClock()
        connection, keys = connect(self.app, 1.0), keys_of(self.app)
        self.store = RedBeatStore(connection, keys)
        self.table = EntryTable(keys.prefix, self.make, self.events.append)
        assert connection.listener is not None
        self.changes = Invalidations(connection.listener, keys.prefix)
        self.reader = EntryReader(self.store, self.table, self.changes, self.clock)
        now = lambda: datetime.now(UTC)  # noqa: E731
        self.runs = RunWriter(self.store, self.table, now)
        statics = StaticEntries(self.app, self.make, self.events.append)
        self.entries = EntryWriter(self.store, self.table, statics, now=now, emit=self.events.append, began_ms=1)
        self.term = Term("replica", 1, "nonce", "gen", "run", float("inf"))

    def make(self, entry_id: str, record: Record) -> StoredEntry | None:
        entry = StoredEntry.of(entry_id, record, self.app)
        if entry is not None:
            entry.rules = EntryOptions.of(entry.name, entry.options, MisfireRules(), None)
        return entry

    def save(self, name: str, when: Any = None, **fields: Any) -> Any:
        when = when or schedule(60.0, app=self.app)
        return redbeat.RedBeatSchedulerEntry(name, "t", when, app=self.app, **fields).save()

    def lead(self) -> None:
        self.reader.turn()
        assert self.entries.begin_term(self.term, self.reader)
        self.entries.note_change(self.term, self.reader)
        self.reader.turn()

    def ran(self, name: str, at: datetime, run_count: int = 1) -> None:
        self.runs.queue_run(name, LedgerRow(at, Verdict.ENQUEUED, run_count=run_count))

    def set_meta(self, name: str, meta: Any) -> None:
        self.server.admin.hset(f"redbeat:{name}", "meta", json.dumps(meta))

    def meta(self, name: str) -> tuple[datetime | None, int | None]:
        raw = self.server.admin.hget(f"redbeat:{name}", "meta")
        return run_state_of(Record(b"", raw.encode()))[:2]


@pytest.fixture
def replica(shared_redis: RedisServer) -> Iterator[Replica]:
    found = Replica(shared_redis)
    yield found
    found.changes.close()


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@pytest.mark.parametrize("meta", [{"last_run_at": NOWHERE}, {"last_run_at": 5}, [], {"total_run_count": [1]}], ids=str)
def test_malformed_run_state_holds_up_no_other_entry(replica, now, meta):
    replica.save("bad")
    replica.save("good")
    replica.lead()
    replica.set_meta("bad", meta)
    replica.save("good", args=[7])
    replica.reader.turn()
    assert replica.table.entries["good"].args == [7]
    for name in ("bad", "good"):
        replica.ran(name, now)
    replica.runs.write()
    assert replica.meta("good") == (now, 1)


def test_schedule_that_raises_holds_up_no_run_state_and_no_restoring(replica, now):
    """After its run the entry was edited to an interval that ends after the year 9999."""
    replica.save("bad")
    replica.save("good")
    replica.lead()
    for name in ("bad", "good"):
        replica.ran(name, now)
    definition = replica.server.admin.hget("redbeat:bad", "definition").replace("60.0", "1e12")
    replica.server.admin.hset("redbeat:bad", "definition", definition)
    replica.reader.turn()
    replica.runs.write()
    assert replica.meta("good") == (now, 1)
    replica.reader.turn()
    replica.server.admin.flushall()
    replica.reader.turn()
    replica.entries.restore(replica.term, replica.reader)
    assert replica.server.admin.exists("redbeat:bad", "redbeat:good") == 2


def test_entry_with_invalid_rules_is_reported_once_and_left_out(replica):
    replica.save("bad", options={"ha_beat": {"jitter": "long"}})
    replica.save("good")
    replica.lead()
    replica.clock.ahead += 301
    replica.reader.turn()
    assert set(replica.table.entries) == {"good"}
    [failed] = [event for event in replica.events if isinstance(event, events.EntryFailed)]
    assert (failed.entry, failed.reason) == ("bad", EntryFault.INVALID)


def fail_to_read(replica, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(replica.store, "read", lambda *_: (_ for _ in ()).throw(StoreError("busy")))
        replica.reader.turn()


def test_edit_is_read_again_after_a_failed_read(replica, monkeypatch):
    replica.save("edited")
    replica.lead()
    replica.save("edited", args=[7])
    fail_to_read(replica, monkeypatch)
    replica.reader.turn()
    assert replica.table.entries["edited"].args == [7]


def test_edit_while_reports_were_lost_is_read_after_a_failed_read(replica, monkeypatch):
    replica.save("edited")
    replica.lead()
    replica.server.admin.client_kill_filter(_type="pubsub")
    replica.save("edited", args=[7])
    with pytest.raises(StoreError):
        for _ in range(3):
            replica.reader.turn()
    fail_to_read(replica, monkeypatch)
    replica.reader.turn()
    assert replica.table.entries["edited"].args == [7]


def test_run_state_from_the_future_is_replaced_and_a_count_never_falls(replica, now):
    """redbeat's own beat ran under a wrong clock, and has counted more runs."""
    replica.save("e")
    replica.lead()
    raw = meta_of(now + timedelta(days=3), 100)
    replica.server.admin.hset("redbeat:e", "meta", raw)
    replica.reader.turn()
    replica.ran("e", now, 6)
    replica.runs.write()
    assert replica.meta("e") == (now, 100)


def test_run_state_does_not_undo_an_edit_a_deletion_or_a_new_run_time(replica, now):
    for name in ("edited", "disabled", "deleted", "rescheduled", "recreated"):
        replica.save(name)
    replica.lead()
    for name in list(replica.table.entries):
        replica.ran(name, now)
    replica.save("edited", args=[7])
    replica.save("disabled", enabled=False)
    later = now + timedelta(seconds=9)
    for name in ("deleted", "recreated"):
        redbeat.RedBeatSchedulerEntry.from_key(f"redbeat:{name}", app=replica.app).delete()
    redbeat.RedBeatSchedulerEntry.from_key("redbeat:rescheduled", app=replica.app).reschedule(later)
    replica.save("recreated")
    created = replica.meta("recreated")
    replica.runs.write()
    assert replica.meta("edited") == (now, 1)
    assert json.loads(replica.server.admin.hget("redbeat:edited", "definition"))["args"] == [7]
    assert json.loads(replica.server.admin.hget("redbeat:disabled", "definition"))["enabled"] is False
    assert not replica.server.admin.exists("redbeat:deleted")
    assert replica.server.admin.zscore("redbeat::schedule", "redbeat:deleted") is None
    assert replica.meta("rescheduled") == (later, None)
    assert replica.meta("recreated") == created
    replica.reader.turn()
    replica.runs.write()
    assert (replica.meta("rescheduled"), replica.meta("recreated")) == ((later, None), created)


@pytest.mark.parametrize("prefix", ["x*?[a]:", "{tag}", "a b\n:", "ü:"])
def test_entries_of_another_prefix_are_not_read(shared_redis, prefix):
    mine, theirs = Replica(shared_redis, prefix), Replica(shared_redis, f"{prefix}other:")
    for each, name in ((mine, "mine"), (theirs, "theirs")):
        each.save(name)
        each.lead()
    mine.save("new")
    theirs.save("theirs", args=[1])
    mine.reader.turn()
    assert set(mine.table.entries) == {"mine", "new"}
    assert set(theirs.table.entries) == {"theirs"}
    for each in (mine, theirs):
        each.changes.close()


def test_restoring_leaves_what_was_saved_after_the_loss(replica, now):
    """An entry that was saved after the loss, and its run times, are newer than the leader's copy."""
    for name in ("saved again", "lost"):
        replica.save(name)
    replica.save("disabled", enabled=False)
    replica.lead()
    replica.server.admin.flushall()
    replica.reader.turn()
    replica.save("saved again", args=[7])
    created = replica.meta("saved again")
    replica.entries.restore(replica.term, replica.reader)
    replica.reader.turn()
    assert replica.table.entries["saved again"].args == [7]
    assert replica.meta("saved again") == created
    assert set(replica.table.entries) == {"saved again", "lost"}
    assert json.loads(replica.server.admin.hget("redbeat:disabled", "definition"))["enabled"] is False
    assert replica.server.admin.hget("redbeat::ha_beat", "restoring") == ""
    replica.server.admin.delete("redbeat:lost")
    replica.reader.turn()
    assert set(replica.table.entries) == {"saved again"}
