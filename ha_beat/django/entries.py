"""Rows of django-celery-beat's table as entries of the schedule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from celery import Celery
from django.utils import timezone
from django_celery_beat.schedulers import ModelEntry

from ha_beat.row_store import entry
from ha_beat.row_store.entry import UnreadableRow

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
        # The base class replaces a missing last run by the current time.
        last_run_at: datetime | None = model.last_run_at
        if model.scheduler is None:
            raise UnreadableRow("it has no schedule")
        ModelEntry.__init__(self, model, app)
        model.last_run_at = last_run_at
        self.id = str(model.pk)
        self.read_row(model, _schedule_columns(model))

    @staticmethod
    def changed_at(value: datetime) -> datetime:
        """Return ``date_changed`` in UTC. Django writes this column, not Celery: a naive value is in its time zone."""
        return (timezone.make_aware(value) if value.tzinfo is None else value).astimezone(UTC)


def _schedule_columns(model: Any) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {"one_off": model.one_off, "start_time": model.start_time}
    for kind, columns in _SCHEDULE_COLUMNS.items():
        source = getattr(model, kind)
        if source is None:
            found[f"{kind}__isnull"] = True
        else:
            found |= {f"{kind}__{column}": getattr(source, column) for column in columns}
    return tuple(found.items())
