"""A leader for whom more falls due than it gets out."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from ha_beat.scheduler import HAScheduler
from tests.support.servers import RedisServer, wait_for

#: So many batches are more than a tenth of a second has room for.
FOR_EVER = 300_000


def test_a_turn_ends_though_there_is_always_more_to_do(
    shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a runaway entry could not be taken out of the schedule: whether that has changed is seen between turns."""
    app = Celery("saturated", broker=shared_redis.url, set_as_current=False)
    app.conf.update(beat_schedule={"e": {"task": "t", "schedule": 60.0}})
    scheduler = HAScheduler(app)
    try:

        def leads() -> bool:
            scheduler.tick()
            return scheduler._loop.leads

        wait_for(leads, 20, "a term")
        monkeypatch.setattr("ha_beat.beat_loop._LONGEST_TURN", 0.1)
        batches = 0

        def advance(*_: Any) -> float:
            nonlocal batches
            batches += 1
            return 0.0 if batches < FOR_EVER else 60.0

        runtime: Any = scheduler._loop.runtime
        runtime.enqueuer.advance = advance
        scheduler.tick()
        assert 1 < batches < FOR_EVER
    finally:
        scheduler.close()
        scheduler.close()
