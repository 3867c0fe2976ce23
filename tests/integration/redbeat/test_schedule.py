"""redbeat's entries under ``-S ha_beat.redbeat``: what redbeat's own interface does takes effect."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from celery import Celery

from ha_beat import events
from ha_beat.reasons import Level
from tests.support.servers import RedisServer

pytest.importorskip("redbeat")

from redbeat.schedules import rrule

from ha_beat.redbeat.doctor import check_redbeat
from tests.integration.redbeat.beat import Beat


@pytest.fixture
def beat(shared_redis: RedisServer) -> Iterator[Beat]:
    found = Beat(shared_redis)
    yield found
    found.close()


def test_saved_entries_run_and_redbeat_reads_their_last_runs(beat):
    beat.save("plain")
    beat.save("rule", rrule("SECONDLY", app=beat.app))
    beat.until(lambda: min(beat.sent()[name] for name in ("plain", "rule")) > 1, "runs")
    beat.until(lambda: beat.entry("plain").total_run_count > 1, "the run state")
    assert beat.entry("plain").due_at is not None
    assert beat.entry("rule").last_run_at.microsecond == 0
    assert abs(beat.server.admin.zscore("redbeat::schedule", "redbeat:plain") - datetime.now(UTC).timestamp()) < 5


def test_edits_and_a_malformed_entry_take_effect(beat):
    entry = beat.save("one", 3600.0)
    beat.save("bad", 3600.0)
    beat.loaded("one", "bad")
    beat.server.admin.hset("redbeat:bad", "definition", '{"name":')
    beat.loaded("one")
    assert [event.entry for event in beat.seen(events.EntryFailed)] == ["bad"]
    assert beat.sent() == {}
    entry.reschedule(datetime(2020, 1, 1, tzinfo=UTC))
    beat.until(lambda: beat.sent()["one"] == 1, "the rescheduled run")
    entry.enabled = False
    entry.save()
    beat.loaded()
    entry.enabled = True
    entry.save()
    beat.loaded("one")
    entry.delete()
    beat.loaded()
    # It ran once for the one request, also after it was enabled again.
    assert beat.sent() == {"one": 1}


def test_options_of_an_entry_reach_the_leader(beat):
    beat.save("busy", 1.0, options={"ha_beat": {"overlap": "skip", "overlap_timeout": 60, "jitter": 0.1}})
    beat.save("free")
    beat.until(lambda: beat.sent()["free"] > 3, "runs of the other entry")
    assert beat.sent()["busy"] == 1
    entries = {entry.name: entry for entry in beat.scheduler.schedule_source.load()}
    assert (entries["busy"].jitter, entries["busy"].busy_for) == (0.1, 60)
    assert {entry_id for entry_id, *_ in beat.scheduler.schedule_source.outlines()} == {"busy", "free"}


def test_changes_are_found_without_reports_of_the_server(shared_redis, monkeypatch):
    from ha_beat.redbeat.invalidations import Invalidations

    monkeypatch.setattr(Invalidations, "take", lambda _: None)
    beat = Beat(shared_redis)
    try:
        entry = beat.save("one", 3600.0)
        beat.loaded("one")
        entry.args = [7]
        entry.save()
        beat.until(lambda: beat.scheduler.schedule["one"].args == [7], "the edit")
        entry.delete()
        beat.loaded()
    finally:
        beat.close()


def test_lost_entries_are_restored_and_deleted_ones_are_not(beat):
    for number in range(3):
        beat.save(f"e{number}", 3600.0)
    beat.loaded("e0", "e1", "e2")
    beat.until(lambda: int(beat.mark().get("seq", 0)) > 0, "the mark")
    before = beat.server.admin.hget("redbeat:e1", "definition")
    beat.server.admin.flushall()
    beat.save("e2", 60.0)
    beat.until(lambda: beat.seen(events.ScheduleRestored), "the restored entries")
    assert [(event.entries, event.known) for event in beat.seen(events.ScheduleRestored)] == [(2, 3)]
    assert beat.server.admin.hget("redbeat:e1", "definition") == before
    # What was saved after the loss stays.
    assert beat.entry("e2").schedule.run_every.total_seconds() == 60
    beat.until(lambda: beat.mark()["restoring"] == "", "the end")
    for number in range(3):
        beat.entry(f"e{number}").delete()
    beat.loaded()
    assert len(beat.seen(events.ScheduleRestored)) == 1
    assert beat.server.admin.zcard("redbeat::schedule") == 0


def test_entries_of_the_settings_are_written_and_removed(shared_redis):
    beat = Beat(
        shared_redis, beat_schedule={"a": {"task": "t", "schedule": 3600.0}, "b": {"task": "t", "schedule": 60}}
    )
    try:
        beat.loaded("a", "b")
        beat.until(lambda: beat.mark().get("statics"), "the note")
        beat.close()
        beat.app.conf.beat_schedule = {"a": {"task": "t2", "schedule": 3600.0}}
        beat.start()
        beat.loaded("a")
        beat.until(lambda: beat.entry("a").task == "t2", "the new settings")
        assert shared_redis.admin.smembers("redbeat::statics") == {"a"}
    finally:
        beat.close()


def test_held_lock_of_redbeat_is_reported(beat):
    assert check_redbeat(beat.app, 1.0).level is Level.OK
    beat.server.admin.set("redbeat::lock", "x", ex=100)
    assert check_redbeat(beat.app, 1.0).level is Level.WARN
    beat.until(lambda: beat.seen(events.OtherSchedulerSeen), "the report")
    assert not beat.seen(events.OtherSchedulerSeen)[0].runs
    beat.server.admin.expire("redbeat::lock", 1000)
    beat.until(lambda: len(beat.seen(events.OtherSchedulerSeen)) == 2, "the second report")
    assert beat.seen(events.OtherSchedulerSeen)[1].runs


def test_unreachable_redis_of_redbeat_does_not_hold_up_known_entries(shared_redis, redis_server):
    beat = Beat(shared_redis, ha_beat_command_timeout=0.5)
    beat.close()
    beat.app = beat.program = Celery("red", broker=shared_redis.url, set_as_current=False)
    beat.app.conf.update(timezone="UTC", redbeat_redis_url=redis_server.url, result_expires=None)
    beat.save("one")
    beat.start()
    try:
        beat.until(lambda: beat.sent()["one"], "a run")
        redis_server.pause()
        sent = beat.sent()["one"]
        beat.until(lambda: beat.sent()["one"] > sent + 2, "runs without redbeat's Redis")
        redis_server.resume()
        beat.until(lambda: beat.entry("one").total_run_count > sent + 2, "the run state")
    finally:
        redis_server.resume()
        beat.close()


def test_writes_of_an_ended_term_are_refused(beat):
    from ha_beat.redbeat.store import Record

    store = beat.scheduler.schedule_source._sync.runs._store
    assert store.set_mark(2**52, "id") is not None
    assert store.set_mark(2**52 - 1, "id") is None
    assert store.save(2**52 - 1, {"redbeat:x": (Record(b"{}"), 1.0)}, replace=True) is None
    assert not beat.server.admin.exists("redbeat:x")
    store.save(2**52, {"redbeat:x": (Record(b"{}", b"1"), 1.0)}, replace=True)
    assert store.save(2**52, {"redbeat:x": (Record(b"{2}"), 1.0)}, replace=False) == {"redbeat:x": False}
    # A run state that another program has set stays.
    assert store.write_runs({"redbeat:x": (Record(b"{}", b"3"), 1.0)}, {"redbeat:x": b"2"}) == {"redbeat:x": b"1"}
    assert not store.note_statics(2**52 - 1, (), ["x"])
    assert beat.server.admin.exists("redbeat:x")
    assert store.note_statics(2**52, ["y", "z"], ["x"])
    assert not beat.server.admin.exists("redbeat:x")
    assert beat.server.admin.zscore("redbeat::schedule", "redbeat:x") is None
    assert beat.server.admin.smembers("redbeat::statics") == {"y", "z"}
