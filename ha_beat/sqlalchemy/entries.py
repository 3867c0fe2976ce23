"""Rows of sqlalchemy-celery-beat's table as entries of the schedule."""

from __future__ import annotations

from typing import Any

from celery import Celery
from sqlalchemy_celery_beat.schedulers import ModelEntry

from ha_beat.row_store import entry
from ha_beat.row_store.entry import Columns, ModelView, UnreadableRow, shared_schedule
from ha_beat.sqlalchemy.queries import SCHEDULES

__all__ = ["RowEntry"]


class RowEntry(entry.RowEntry, ModelEntry):  # type: ignore[misc]  # sqlalchemy-celery-beat has no types
    """Entry of one row of sqlalchemy-celery-beat. Unlike ``ModelEntry`` it never writes to the database.

    Raises:
        UnreadableRow: the arguments are not JSON, or there is no schedule.
        Exception: any error of a schedule with impossible values.
    """

    def __init__(self, model: Any, Session: Any = None, app: Celery | None = None) -> None:  # noqa: N803 -- as the base
        source = model.schedule_model
        if source is None:
            raise UnreadableRow("it has no schedule")
        shared = shared_schedule(type(self), model, source, _schedule_columns(source), app)
        # The base class replaces a missing last run by the current time.
        ModelEntry.__init__(self, ModelView(model, shared.schedule), Session=Session, app=app)
        self.id = str(model.id)
        self.read_row(model, shared)


def _schedule_columns(source: Any) -> Columns:
    columns = ((column, getattr(source, column)) for column in SCHEDULES[type(source)])
    return (("schedule", type(source)), ("id", source.id), *columns)
