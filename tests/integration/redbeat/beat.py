"""Scheduler for redbeat's entries in the process of a test."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import redbeat
from celery import Celery
from celery.schedules import schedule

from ha_beat import events
from ha_beat.redbeat.schedulers import HARedBeatScheduler
from tests.support.servers import RedisServer, wait_for


class Beat:
    """Scheduler in this process. Its main loop runs while a test waits."""

    def __init__(self, server: RedisServer, **conf: Any) -> None:
        """``server`` is the broker, and redbeat's Redis unless ``conf`` names another."""
        self.server = server
        self.app = Celery("red", broker=server.url, set_as_current=False)
        self.app.conf.update({"timezone": "UTC", "redbeat_redis_url": server.url, "result_expires": None, **conf})
        #: App of the program that saves entries.
        self.program = self.app
        self.events: list[events.Event] = []
        self.start()

    def start(self) -> None:
        self.scheduler = HARedBeatScheduler(app=self.app)
        self.scheduler.tick()
        self.scheduler._loop.runtime.events.subscribe(self.events.append)

    def close(self) -> None:
        self.scheduler.close()

    def save(self, name: str, every: Any = 1.0, **options: Any) -> Any:
        when = schedule(every, app=self.program) if isinstance(every, float) else every
        return redbeat.RedBeatSchedulerEntry(name, "t", when, app=self.program, **options).save()

    def entry(self, name: str) -> Any:
        return redbeat.RedBeatSchedulerEntry.from_key(self.program.redbeat_conf.key_prefix + name, app=self.program)

    def sent(self) -> Counter[str]:
        raw: Any = self.server.admin.lrange("celery", 0, -1)
        return Counter(json.loads(message)["headers"]["ha_beat"]["entry"] for message in raw)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def ticked() -> Any:
            self.scheduler.tick()
            return condition()

        wait_for(ticked, 20, what)

    def loaded(self, *names: str) -> None:
        self.until(lambda: set(self.scheduler.schedule) == set(names), f"the entries {names}")

    def seen(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def mark(self) -> dict[str, str]:
        return self.server.admin.hgetall("redbeat::ha_beat")
