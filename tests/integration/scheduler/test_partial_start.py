"""Replica with a part that did not start or has ended."""

import logging
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.beat import Scheduler

from ha_beat.scheduler import HAMixin, HAScheduler
from tests.support.log_format import actions
from tests.support.schedulers import closing, leads
from tests.support.servers import RedisServer, wait_for


class Store(Scheduler):
    """Scheduler that writes to its own store."""

    written = 0
    away = False

    def sync(self) -> None:
        self.written += 1
        if self.away:
            raise ConnectionError("no database")


class HAStore(HAMixin, Store):
    """Highly available variant."""


@pytest.fixture
def app(shared_redis: RedisServer) -> Celery:
    made = Celery("half", broker=shared_redis.url, set_as_current=False)
    made.conf.update(ha_beat_lease_ttl=2.0, beat_schedule={"e": {"task": "t", "schedule": 0.2}})
    return made


@pytest.fixture
def replica(app: Celery) -> Iterator[HAScheduler]:
    made = HAScheduler(app)
    with closing(made):
        yield made


def test_threads_that_could_not_start_are_started_later(replica: HAScheduler, monkeypatch, caplog):
    real = threading.Thread.start
    refused: list[str] = []

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("ha_beat") and thread.name not in refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    wait_for(lambda: leads(replica), 20, "a term")
    assert set(refused) >= {"ha_beat-elector", "ha_beat-poller", "ha_beat-watchdog", "ha_beat-log"}
    assert any(thread.name == "ha_beat-poller" for thread in threading.enumerate())
    wait_for(lambda: "turn_failed" in actions(caplog), 10, "the line")
    failures = [r.__dict__["detail"] for r in caplog.records if r.__dict__.get("action") == "turn_failed"]
    assert "RuntimeError: can't start new thread" in failures


def test_monitoring_is_started_once_if_the_source_starts_late(replica: HAScheduler, monkeypatch):
    """For example, the source for django-celery-beat cannot start its thread at first."""
    start = Mock(side_effect=[RuntimeError("can't start new thread"), None])
    monkeypatch.setattr(replica.schedule_source, "start", start)
    before = sum(thread.name == "ha_beat-poller" for thread in threading.enumerate())
    wait_for(lambda: leads(replica), 20, "a term")
    assert sum(thread.name == "ha_beat-poller" for thread in threading.enumerate()) == before + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_election_whose_thread_ended_is_restarted_and_logged(replica: HAScheduler, caplog, monkeypatch):
    """For example, a library raises SystemExit in a log handler."""
    wait_for(lambda: leads(replica), 20, "a term")
    elector: Any = replica._loop.runtime.elector
    first = elector.handle.thread
    real = elector._step

    def end() -> None:
        elector._step = real
        raise SystemExit

    elector._step = end
    wait_for(lambda: not first.is_alive(), 10, "the thread's end")
    with caplog.at_level(logging.INFO, "ha_beat"):
        wait_for(lambda: leads(replica), 20, "another term")
    assert elector.handle.running
    assert "election_failed" in actions(caplog)


def test_standby_and_leader_without_runs_do_not_write_to_the_store(app: Celery):
    """Celery calls sync at the first tick, every three minutes, and at the end."""
    leader, standby = HAStore(app), HAStore(app)
    with closing(leader, standby):
        leader.sync()
        assert leader.written == 0
        wait_for(lambda: leads(leader) and leader.schedule_source.unsynced, 20, "a recorded run")
        for _ in range(3):
            leader.sync()
            standby.sync()
            standby.tick()
        assert leader.written > 0
        before = leader.written
        leader.schedule_source.unsynced = True
    assert (leader.written, standby.written) == (before + 1, 0)


def test_failing_write_to_the_store_does_not_end_beat(app: Celery, caplog):
    """Celery ends the process if sync raises."""
    leader = HAStore(app)
    leader.away = True
    with closing(leader):
        wait_for(lambda: leads(leader) and leader.schedule_source.unsynced, 20, "a recorded run")
        leader._do_sync()
        assert "schedule_write_failed" in actions(caplog)
        leader.away = False
        leader._do_sync()
        assert (leader.written, leader.schedule_source.unsynced) == (2, False)


def test_close_raises_nothing_if_the_release_raises(replica: HAScheduler):
    """Close runs in Celery's signal handler, before the exception that ends beat."""
    wait_for(lambda: leads(replica), 20, "a term")
    failure = RuntimeError("dictionary changed size during iteration")
    object.__setattr__(replica._loop.runtime, "release", Mock(side_effect=failure))
    replica.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_closed_replica_ends_at_its_next_tick(replica: HAScheduler):
    """SIGTERM arrived during a destructor, where Python ignores the exception that ends beat."""
    wait_for(lambda: leads(replica), 20, "a term")

    class Dying:
        def __del__(self) -> None:
            replica.close()
            raise SystemExit

    Dying()
    with pytest.raises(SystemExit):
        replica.tick()
