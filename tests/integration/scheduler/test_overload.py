"""Leader under overload."""

from typing import Any

from celery import Celery

from ha_beat.scheduler import HAScheduler
from tests.support.clocks import SteppedClock
from tests.support.schedulers import closing, leads
from tests.support.servers import RedisServer, wait_for


def test_turn_ends_under_overload(shared_redis: RedisServer):
    """Changes of the schedule are detected between turns of 0.1 s, so that a runaway entry can be removed."""
    app = Celery("saturated", broker=shared_redis.url, set_as_current=False)
    app.conf.update(beat_schedule={"e": {"task": "t", "schedule": 60.0}})
    scheduler = HAScheduler(app)
    with closing(scheduler):
        wait_for(lambda: leads(scheduler), 30, "a term")
        loop: Any = scheduler._loop
        clock = loop._clock = SteppedClock()
        batches: list[object] = []

        def advance(*_: Any) -> float:
            batches.append(None)
            clock.ahead += 0.03
            return 0.0

        loop.runtime.enqueuer.advance = advance
        scheduler.tick()
        assert len(batches) == 4
