"""Scheduler class for django-celery-beat."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import router
from django.db.models import QuerySet
from django_celery_beat.schedulers import DatabaseScheduler

from ha_beat.django.database import DjangoDatabase
from ha_beat.django.entries import RowEntry
from ha_beat.django.queries import DjangoQueries
from ha_beat.django.statements import DjangoStatements
from ha_beat.django.static_entries import DjangoStaticRows
from ha_beat.row_store.backend import RowStore
from ha_beat.row_store.source import RowSource
from ha_beat.stored_scheduler import StoredScheduler

__all__ = ["HADatabaseScheduler"]


class DatabaseSource(RowSource):
    """Schedule source for django-celery-beat's rows."""

    stock = ("celery.beat", "django_celery_beat.schedulers")
    unused = ("all_as_schedule", "enabled_models", "schedule_changed", "schedules_equal")


class HADatabaseScheduler(StoredScheduler, DatabaseScheduler):  # type: ignore[misc]  # django-celery-beat has no types
    """Highly available scheduler for django-celery-beat's schedule.

    Use it with ``CELERY_BEAT_SCHEDULER = "ha_beat.django.schedulers:HADatabaseScheduler"``, or with
    ``celery beat -S ha_beat.django``. The models and the admin are those of django-celery-beat. Two threads
    (:mod:`ha_beat.row_store.sync`) read the database and, on the leader, write to it.
    """

    Entry = RowEntry

    def enabled_models_qs(self) -> QuerySet[Any]:
        """Return all enabled rows.

        django-celery-beat returns only rows due within hours. A row that fell due during an outage would be missing.
        """
        rows: QuerySet[Any] = self.Model.objects.filter(enabled=True)
        return rows

    def row_store(self) -> RowStore:
        """Return the parts that read and write django-celery-beat's tables."""
        return RowStore(
            DjangoDatabase(lambda: {router.db_for_read(self.Model), router.db_for_write(self.Model)}),
            DjangoQueries(self.Changes, self.enabled_models_qs),
            DjangoStatements(self.Model, self.Changes),
            DjangoStaticRows(self.Model),
            partial(self.Entry, app=self.app),
        )

    def _new_schedule_source(self) -> DatabaseSource:
        return DatabaseSource(self)
