"""Takeover of a large schedule from each store: due entries first, and edits during the load."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ha_beat import events
from ha_beat.leader.loading import gradual_load, loaded_schedule, schedule_loader
from tests.integration.django.conftest import _migrated_sqlite, site  # noqa: F401 -- fixtures
from tests.integration.row_store.conftest import DjangoRows, SqlRows
from tests.support.servers import RedisServer, wait_for

COUNT = 60


class Stored:
    """Schedule of one store: `e0` to `e<COUNT>` each hour, and `due` each second."""

    def __init__(
        self, app: Any, make: Callable[..., Any], edit: Callable[[], None], name: Callable[[str], str]
    ) -> None:
        self.app = app
        self.make = make
        #: Save `e30` with an interval of a second.
        self.edit = edit
        #: Return the name of an entry by its id.
        self.name = name


def rows_of(rows: Any, scheduler: Any) -> Stored:
    for number in range(COUNT):
        rows.add(f"e{number}", schedule={"every": 3600, "period": "seconds"})
    rows.add("due", schedule={"every": 1, "period": "seconds"})
    rows.add("spare", schedule={"every": 2, "period": "seconds"}, enabled=False)
    names = {rows.id(name): name for name in ("due", "e30")}

    def edit() -> None:
        if isinstance(rows, DjangoRows):
            rows.save("e30", interval=rows.model.objects.get(name="due").interval)
        else:
            rows.delete("e30")
            rows.add("e30", schedule={"every": 1, "period": "seconds"})
            names[rows.id("e30")] = "e30"

    return Stored(rows.app, scheduler, edit, lambda entry: names.get(entry, entry))


@pytest.fixture(params=["redbeat", "sqlalchemy", "django"])
def stored(request: pytest.FixtureRequest, shared_redis: RedisServer, tmp_path: Path) -> Iterator[Stored]:
    if request.param == "redbeat":
        pytest.importorskip("redbeat")
        from tests.integration.redbeat.beat import Beat

        beat = Beat(shared_redis, ha_beat_misfire="all")
        beat.close()
        shared_redis.admin.flushall()
        for number in range(COUNT):
            beat.save(f"e{number}", 3600.0)
        beat.save("due", 1.0)
        yield Stored(beat.app, type(beat.scheduler), lambda: beat.save("e30", 1.0), str)
        return
    if request.param == "sqlalchemy":
        pytest.importorskip("sqlalchemy_celery_beat")
        from ha_beat.sqlalchemy.schedulers import HADatabaseScheduler

        found = rows_of(SqlRows(f"sqlite:///{tmp_path}/rows.db"), HADatabaseScheduler)
    else:
        pytest.importorskip("django_celery_beat")
        request.getfixturevalue("site")
        from ha_beat.django.schedulers import HADatabaseScheduler as DjangoScheduler

        found = rows_of(DjangoRows(), DjangoScheduler)
    before = dict(found.app.conf.changes)
    found.app.conf.update(broker_url=shared_redis.url, ha_beat_misfire="all", ha_beat_cluster="gradual")
    yield found
    found.app.conf.changes.clear()
    found.app.conf.changes.update(before)


@pytest.mark.slow
def test_due_entry_is_sent_while_a_large_schedule_is_loaded_and_edited(
    stored: Stored, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load of each part takes 50 ms. Nothing is missed or sent twice."""
    for module in (loaded_schedule, gradual_load):
        monkeypatch.setattr(module, "PART", 1)
    monkeypatch.setattr(loaded_schedule, "PART_BUDGET", 0.0)
    monkeypatch.setattr(schedule_loader, "LARGE", 10)

    def instants(name: str) -> list[datetime]:
        raw: Any = shared_redis.admin.lrange("celery", 0, -1)
        headers = [json.loads(message)["headers"]["ha_beat"] for message in reversed(raw)]
        return [datetime.fromisoformat(one["scheduled_at"]) for one in headers if stored.name(one["entry"]) == name]

    first, second = stored.make(app=stored.app), stored.make(app=stored.app)

    def until(scheduler: Any, condition: Callable[[], Any], what: str) -> None:
        def ticked() -> Any:
            scheduler.tick()
            return condition()

        wait_for(ticked, 40, what)

    try:
        until(first, lambda: len(instants("due")) > 2, "messages")
        seen: list[str] = []
        second.tick()
        runtime = second._loop.runtime

        def note(event: events.Event) -> None:
            if isinstance(event, events.Enqueued) and not seen:
                stored.edit()
            if isinstance(event, events.Enqueued | events.ScheduleReady):
                seen.append(event.action)

        runtime.events.subscribe(note)
        for _ in range(3):
            first.tick()
            second.tick()
        assert second.schedule_source.ready()
        load_part = gradual_load.GradualLoad.load_part

        def slow(*args: Any) -> Any:
            time.sleep(0.05)
            return load_part(*args)

        monkeypatch.setattr(gradual_load.GradualLoad, "load_part", slow)
        first.close()
        until(second, lambda: events.ScheduleReady.action in seen, "the end of the load")
        assert seen.index(events.Enqueued.action) < seen.index(events.ScheduleReady.action)
        until(second, lambda: len(instants("e30")) > 2, "messages of the edited entry")
    finally:
        first.close()
        second.close()
    for name in ("due", "e30"):
        found = instants(name)
        assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(seconds=1)}, Counter(found)
