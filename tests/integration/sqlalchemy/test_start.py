"""Start of the scheduler for sqlalchemy-celery-beat."""

from __future__ import annotations

import pytest
from celery import Celery

pytest.importorskip("sqlalchemy_celery_beat")


def test_scheduler_starts_while_the_database_is_away():
    """It connects in a thread, and creates no table before."""
    from ha_beat.sqlalchemy.schedulers import HADatabaseScheduler

    rows = Celery("rows", broker="redis://localhost:6379/0", set_as_current=False)
    rows.conf.beat_dburi = "postgresql+psycopg://user:hidden@127.0.0.1:1/none"
    scheduler = HADatabaseScheduler(app=rows)
    assert scheduler.schedule == {}
    assert scheduler.max_interval == 5
    with pytest.raises(Exception) as raised:
        scheduler.database.refresh()
    fault = scheduler.database.fault(raised.value)
    assert fault is not None
    assert fault.name == "UNREACHABLE"
