"""The scheduler for django-celery-beat."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery import Celery
from django.db.models import QuerySet
from django_celery_beat.schedulers import DatabaseScheduler

from ha_beat.django.entries import RowEntry
from ha_beat.django.schedule_source import DatabaseSource
from ha_beat.scheduler import HAMixin

__all__ = ["HADatabaseScheduler"]


class HADatabaseScheduler(HAMixin, DatabaseScheduler):  # type: ignore[misc]  # django-celery-beat has no types
    """django-celery-beat's schedule, highly available.

    ``CELERY_BEAT_SCHEDULER = "ha_beat.django.schedulers:HADatabaseScheduler"``, or ``celery beat -S ha_beat.django``.
    The models, the admin and what they mean are django-celery-beat's. The database is read and written by a thread of
    its own (:mod:`ha_beat.django.row_sync`), on a standby only read.
    """

    Entry = RowEntry
    schedule_source: DatabaseSource

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        if not issubclass(self.Entry, RowEntry):
            kind, entry = type(self).__name__, self.Entry.__name__
            raise SystemExit(
                f"ha_beat can't start: {kind}.Entry is {entry}, which does not inherit from "
                f"ha_beat.django.entries.RowEntry; without it each look at an entry would write to its row"
            )
        super().__init__(app, *args, **kwargs)

    # --- What django-celery-beat would do with the database

    def setup_schedule(self) -> None:
        """Do nothing yet: the settings' entries are written by the leader."""

    def sync(self) -> None:
        """Do nothing: the rows are written soon after each dispatch, off the main loop."""

    def enabled_models_qs(self) -> QuerySet[Any]:
        """All enabled rows.

        Not only those due within hours, as django-celery-beat has it: one that fell due during an outage counts too.
        """
        rows: QuerySet[Any] = self.Model.objects.filter(enabled=True)
        return rows

    @property
    def schedule(self) -> dict[str, RowEntry]:  # type: ignore[override]
        """The entries as last read, by name. Asks nobody."""
        return self.schedule_source.entries

    # --- What HAMixin asks

    def entry_id(self, entry: Any) -> str:
        return str(entry.id)

    def stored_last_run_at(self, entry: Any) -> datetime | None:
        stored: datetime | None = entry.stored_last_run_at
        return stored

    def update_from_dict(self, mapping: Mapping[str, Any]) -> None:
        """Do nothing: see :mod:`ha_beat.django.static_entries`."""

    def _new_schedule_source(self) -> DatabaseSource:
        return DatabaseSource(self)
