"""The scheduler in one process: what a turn that fails costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from ha_beat.scheduler import HAScheduler
from tests.servers import RedisServer, wait_for


@pytest.fixture
def scheduler(shared_redis: RedisServer) -> Iterator[HAScheduler]:
    app = Celery("turns", broker=shared_redis.url, set_as_current=False)
    app.conf.update(ha_beat_lease_ttl=3.0, ha_beat_stall_timeout=3.5, beat_schedule={})
    made = HAScheduler(app, lazy=True)
    yield made
    made.close()
    made.close()


def leads(scheduler: HAScheduler) -> bool:
    scheduler.tick()
    return scheduler._runtime is not None and scheduler._runtime.elector.term is not None


def test_a_leader_whose_turns_all_fail_says_so_once_and_leaves_the_lease(
    scheduler: HAScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no better than one that hangs, and another replica may fare better."""
    wait_for(lambda: leads(scheduler), 10, "a term")

    def broken(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(scheduler, "_lead", broken)
    with caplog.at_level(logging.INFO, "ha_beat"):
        wait_for(lambda: not leads(scheduler), 20, "the end of the term")
    lines = [record.getMessage() for record in caplog.records]
    assert sum("A turn of the scheduler failed" in line for line in lines) == 1
    assert any("No longer leading" in line and "KeyError" in line for line in lines)


def test_a_replica_that_cannot_be_put_together_does_not_spin(
    scheduler: HAScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A turn that fails before there is anything to wait on."""
    turns = 0

    def broken(*_: Any) -> None:
        nonlocal turns
        turns += 1
        raise OSError("no entropy")

    monkeypatch.setattr("ha_beat.scheduler.assemble", broken)
    monkeypatch.setattr("ha_beat.scheduler._LONGEST_TICK", 0.2)
    waits: list[float] = []
    monkeypatch.setattr("ha_beat.scheduler.SystemClock.sleep", lambda _, seconds: waits.append(seconds))
    for _ in range(3):
        scheduler.tick()
    assert (turns, waits) == (3, [0.2] * 3)
    assert sum("A turn of the scheduler failed" in record.getMessage() for record in caplog.records) == 1
