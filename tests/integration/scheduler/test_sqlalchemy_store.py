"""sqlalchemy-celery-beat's scheduler under ``HAMixin``."""

import json
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from ha_beat.scheduler import HAMixin
from tests.support.schedulers import closing
from tests.support.servers import RedisServer, wait_for

schedulers = pytest.importorskip("sqlalchemy_celery_beat.schedulers")
models = pytest.importorskip("sqlalchemy_celery_beat.models")


def rows_of(scheduler: Any) -> dict[str, tuple[bool, int]]:
    """Return for each row whether it is enabled, and how often it ran."""
    with scheduler.Session() as session:
        return {row.name: (row.enabled, row.total_run_count) for row in session.query(models.PeriodicTask)}


@pytest.mark.slow
def test_rows_are_written_and_a_one_off_row_runs_once(shared_redis: RedisServer, tmp_path: Path):
    # The package creates the tables of the first database only.
    schedulers.session_manager.prepared = False
    kind = type("Rows", (HAMixin, schedulers.DatabaseScheduler), {})
    app = Celery("rows", broker=shared_redis.url, set_as_current=False)
    app.conf.update(beat_dburi=f"sqlite:///{tmp_path}/rows.db", timezone="UTC", result_expires=None)
    app.conf.beat_schedule = {
        "often": {"task": "t", "schedule": 1.0},
        "once": {"task": "t", "schedule": 1.0, "options": {"one_off": True}},
    }
    scheduler = kind(app=app)

    def sent(name: str) -> int:
        scheduler.tick()
        raw: Any = shared_redis.admin.lrange("celery", 0, -1)
        return sum(json.loads(message)["headers"]["ha_beat"]["entry"] == name for message in raw)

    with closing(scheduler):
        wait_for(lambda: sent("often") > 4, 40, "runs")
        scheduler.sync()
        rows = rows_of(scheduler)
        assert sent("once") == 1
        assert not rows["once"][0]
        assert rows["often"][0]
        # The store reads its rows again while it runs, which may lose the count of a run or two.
        assert rows["often"][1] >= 2
