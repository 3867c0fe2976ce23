"""Leader under overload."""

from __future__ import annotations

from typing import Any

from celery import Celery

from ha_beat.scheduler import HAScheduler
from tests.support.servers import RedisServer, wait_for

#: More batches than a tenth of a second has room for.
ENDLESS = 300_000


def test_turn_ends_under_overload(shared_redis: RedisServer, monkeypatch):
    """Changes of the schedule are detected between turns, so that a runaway entry can be removed."""
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
            return 0.0 if batches < ENDLESS else 60.0

        runtime: Any = scheduler._loop.runtime
        runtime.enqueuer.advance = advance
        scheduler.tick()
        assert 1 < batches < ENDLESS
    finally:
        scheduler.close()
        scheduler.close()
