"""Rows of sqlalchemy-celery-beat's table as entries of the schedule."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery import Celery
from sqlalchemy_celery_beat.schedulers import ModelEntry

from ha_beat.row_store import entry
from ha_beat.row_store.entry import UnreadableRow
from ha_beat.sqlalchemy.queries import SCHEDULES

__all__ = ["RowEntry"]


class RowEntry(entry.RowEntry, ModelEntry):  # type: ignore[misc]  # sqlalchemy-celery-beat has no types
    """Entry of one row of sqlalchemy-celery-beat. Unlike ``ModelEntry`` it never writes to the database.

    Raises:
        UnreadableRow: the arguments are not JSON, or there is no schedule.
        Exception: any error of a schedule with impossible values.
    """

    def __init__(self, model: Any, Session: Any = None, app: Celery | None = None) -> None:  # noqa: N803 -- as the base
        # The base class replaces a missing last run by the current time.
        last_run_at: datetime | None = model.last_run_at
        if model.schedule_model is None:
            raise UnreadableRow("it has no schedule")
        ModelEntry.__init__(self, model, Session=Session, app=app)
        model.last_run_at = last_run_at
        self.id = str(model.id)
        self.read_row(model, _schedule_columns(model))


def _schedule_columns(model: Any) -> tuple[tuple[str, Any], ...]:
    schedule = model.schedule_model
    columns = SCHEDULES[type(schedule)]
    own = (("one_off", model.one_off), ("start_time", model.start_time), ("schedule", type(schedule)))
    return (*own, ("id", schedule.id), *((column, getattr(schedule, column)) for column in columns))
