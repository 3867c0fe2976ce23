"""Rows of django-celery-beat's table as entries of the schedule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from celery import Celery
from django.utils import timezone
from django_celery_beat.schedulers import ModelEntry

from ha_beat.row_store import entry
from ha_beat.row_store.entry import Columns, ModelView, UnreadableRow, shared_schedule

__all__ = ["RowEntry"]

_SCHEDULE_COLUMNS = {
    "interval": ("every", "period"),
    "crontab": ("minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone"),
    "solar": ("event", "latitude", "longitude"),
    "clocked": ("clocked_time",),
}


class RowEntry(entry.RowEntry, ModelEntry):  # type: ignore[misc]  # django-celery-beat has no types
    """Entry of one row of django-celery-beat. Unlike ``ModelEntry`` it never writes to the database.

    Raises:
        UnreadableRow: the arguments are not JSON, or there is no schedule.
        Exception: any error of a schedule with impossible values.
    """

    def __init__(self, model: Any, app: Celery | None = None) -> None:
        source = model.scheduler
        if source is None:
            raise UnreadableRow("it has no schedule")
        shared = shared_schedule(type(self), model, source, _schedule_columns(model), app)
        # The base class replaces a missing last run by the current time.
        ModelEntry.__init__(self, ModelView(model, shared.schedule), app)
        self.id = str(model.pk)
        self.read_row(model, shared)

    @staticmethod
    def changed_at(value: datetime) -> datetime:
        """Return ``date_changed`` in UTC. Django writes this column: a naive value is in Django's time zone."""
        return (timezone.make_aware(value) if value.tzinfo is None else value).astimezone(UTC)


def _schedule_columns(model: Any) -> Columns:
    found: dict[str, Any] = {}
    for kind, columns in _SCHEDULE_COLUMNS.items():
        source = getattr(model, kind)
        if source is None:
            found[f"{kind}__isnull"] = True
        else:
            found |= {f"{kind}__{column}": getattr(source, column) for column in columns}
    return tuple(found.items())
