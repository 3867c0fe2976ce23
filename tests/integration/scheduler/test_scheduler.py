"""Scheduler in one process: failing turns, edits and deletions."""

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.schedules import schedule

from ha_beat.scheduler import HAScheduler
from ha_beat.store.keys import Keys
from tests.support.log_format import actions
from tests.support.schedulers import closing, leads
from tests.support.servers import RedisServer, wait_for


@pytest.fixture
def scheduler(shared_redis: RedisServer) -> Iterator[HAScheduler]:
    app = Celery("turns", broker=shared_redis.url, set_as_current=False)
    app.conf.update(ha_beat_lease_ttl=3.0, ha_beat_stall_timeout=3.5, beat_schedule={})
    made = HAScheduler(app, lazy=True)
    with closing(made):
        yield made


def test_leader_whose_turns_fail_logs_once_and_steps_down(scheduler: HAScheduler, monkeypatch, caplog):
    wait_for(lambda: leads(scheduler), 10, "a term")

    monkeypatch.setattr(scheduler._loop, "_lead", Mock(side_effect=KeyError("a bug")))
    with caplog.at_level(logging.INFO, "ha_beat"):
        wait_for(lambda: not leads(scheduler), 20, "the end of the term")
        wait_for(lambda: "term_ended" in actions(caplog), 10, "the line")
    assert actions(caplog).count("turn_failed") == 1
    (ended,) = (record for record in caplog.records if record.__dict__.get("action") == "term_ended")
    assert "KeyError" in ended.getMessage()


def test_replica_that_cannot_be_assembled_backs_off(scheduler: HAScheduler, monkeypatch, caplog):
    broken = Mock(side_effect=OSError("no entropy"))
    monkeypatch.setattr("ha_beat.scheduler.assemble", broken)
    monkeypatch.setattr("ha_beat.beat_loop._LONGEST_TURN", 0.2)
    waits: list[float] = []
    monkeypatch.setattr("ha_beat.beat_loop.SystemClock.sleep", lambda _, seconds: waits.append(seconds))
    for _ in range(3):
        scheduler.tick()
    assert (broken.call_count, waits) == (3, [0.2] * 3)
    assert actions(caplog).count("turn_failed") == 1


EDITS: dict[str, Callable[[HAScheduler], object]] = {
    "update_from_dict": lambda scheduler: scheduler.update_from_dict({"one": {"task": "one", "schedule": 0.2}}),
    "add": lambda scheduler: scheduler.add(name="one", task="one", schedule=0.2),
    "assignment": lambda scheduler: setattr(scheduler.schedule["one"], "schedule", schedule(0.2)),
    "replacement": lambda scheduler: scheduler.schedule.update(one=scheduler.Entry("one", "one", schedule=0.2)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_entry_replaced_by_the_leader_uses_its_new_schedule(scheduler: HAScheduler, shared_redis: RedisServer, edit):
    scheduler.update_from_dict({"one": {"task": "one", "schedule": 3600.0}})
    wait_for(lambda: leads(scheduler) and shared_redis.admin.hexists(Keys("turns").ledger, "e:one"), 10, "a term")
    EDITS[edit](scheduler)
    wait_for(lambda: leads(scheduler) and shared_redis.admin.llen("celery") > 2, 10, "messages")


@pytest.mark.parametrize("how", ["add", "update_from_dict"])
def test_last_run_of_a_definition_counts(scheduler: HAScheduler, shared_redis: RedisServer, how: str):
    """As in Celery, the entry is then overdue."""
    definition = {"task": "one", "schedule": 3600.0, "last_run_at": datetime.now(UTC) - timedelta(hours=2)}
    if how == "add":
        scheduler.add(name="one", **definition)
    else:
        scheduler.update_from_dict({"one": definition})
    wait_for(lambda: leads(scheduler) and shared_redis.admin.llen("celery"), 10, "a message")


class Release:
    """Leader of a release with these hourly entries."""

    def __init__(self, server: RedisServer, *entries: str) -> None:
        self.client: Any = server.client()
        app = Celery("releases", broker=server.url, set_as_current=False)
        schedule = {name: {"task": name, "schedule": 3600.0} for name in entries}
        app.conf.update(beat_schedule={"always": {"task": "always", "schedule": 3600.0}, **schedule})
        self.scheduler = HAScheduler(app)
        wait_for(lambda: leads(self.scheduler) and self.row("always"), 10, "a term")

    def row(self, entry: str) -> dict[str, Any]:
        return json.loads(self.client.hget(Keys("releases").ledger, f"e:{entry}") or "{}")

    def messages(self) -> list[str]:
        return [json.loads(raw)["headers"]["task"] for raw in self.client.lrange("celery", 0, -1)]

    def wait_until_gone(self, entry: str) -> None:
        def gone() -> bool:
            self.scheduler.tick()
            return bool(self.row(entry)["verdict"] == "absent")

        wait_for(gone, 10, f"the deletion of {entry}")

    def stop(self) -> None:
        self.scheduler.close()
        self.scheduler.close()

    def turn_back(self, *entries: str) -> None:
        """Move the last run of the entries back by two hours."""
        for entry in entries:
            row = self.row(entry)
            row["base"] -= 2 * 3600 * 1_000_000
            self.client.hset(Keys("releases").ledger, f"e:{entry}", json.dumps(row))


@pytest.mark.parametrize("gone", [True, False])
def test_entry_missing_for_an_hour_is_not_caught_up(shared_redis: RedisServer, monkeypatch, gone):
    """During a rolling deploy another release may lack an entry for a short time. It is caught up then."""
    monkeypatch.setattr("ha_beat.beat_loop._LONGEST_TURN", 0.1)
    newer = Release(shared_redis, "e")
    newer.stop()
    if gone:
        monkeypatch.setattr("ha_beat.schedule_sources.entry_source._DELETED_AFTER", 0.3)
    older, row = Release(shared_redis), newer.row("e")
    if gone:
        older.wait_until_gone("e")
    else:
        older.scheduler.tick()
        assert older.row("e") == row
    older.stop()
    older.turn_back("e", "always")
    newer = Release(shared_redis, "e")
    wait_for(lambda: leads(newer.scheduler) and newer.messages(), 10, "the overdue messages")
    newer.scheduler.tick()
    assert sorted(newer.messages()) == (["always"] if gone else ["always", "e"])
    assert newer.row("e")["verdict"] == ("armed" if gone else "enqueued")
    newer.stop()


def test_entry_with_a_lone_surrogate_in_its_name_is_sent(scheduler: HAScheduler, shared_redis: RedisServer, caplog):
    """Neither Redis nor a terminal accepts such a text, so records have it escaped."""
    # The workers of pytest cannot pass on such a log line either.
    caplog.set_level(logging.CRITICAL, "ha_beat")
    bad = {"task": "t", "args": ("\ud83d",), "schedule": 0.1}
    scheduler.update_from_dict({"half \ud83d": bad, "whole \U0001f941": {"task": "t", "schedule": 0.1}})
    names = {"half \\ud83d", "whole \U0001f941"}

    def sent() -> set[str]:
        scheduler.tick()
        raw = shared_redis.admin.lrange("celery", 0, -1)
        return {json.loads(message)["headers"]["ha_beat"]["entry"] for message in raw}

    wait_for(lambda: sent() == names, 10, "messages of both entries")


def test_close_releases_the_lease_where_waiting_raises(scheduler: HAScheduler, shared_redis: RedisServer, monkeypatch):
    """gevent and eventlet may run the signal handler in their hub."""
    wait_for(lambda: leads(scheduler), 10, "a term")

    refuse = Mock(side_effect=RuntimeError("do not call blocking functions from the mainloop"))
    monkeypatch.setattr("ha_beat.monitoring.setup.Monitoring.finish_stop", refuse)
    scheduler.close()
    assert shared_redis.admin.hget(Keys("turns").lease, "state") == "released"
