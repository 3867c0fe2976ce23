"""Rows of django-celery-beat for the entries of the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

from django.db import ProgrammingError, connections, router, transaction
from django.db.migrations.recorder import MigrationRecorder
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import MICROSECONDS, IntervalSchedule
from django_celery_beat.schedulers import ModelEntry
from django_celery_beat.tzcrontab import TzAwareCrontab

from ha_beat.django.database import limited
from ha_beat.row_store.backend import Definition
from ha_beat.row_store.static_entries import microseconds_of, row_schedule, unpacked


class DjangoStaticRows:
    """Rows for the entries of the settings."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._manager = model._default_manager  # noqa: SLF001 -- Django's documented way

    def present(self, names: Collection[str]) -> tuple[str, set[str]]:
        alias = router.db_for_write(self._model)
        with limited(alias):
            rows = self._manager.using(alias).filter(name__in=names)
            return database_identity(alias), set(rows.values_list("name", flat=True))

    def write(self, name: str, definition: Definition) -> list[str]:
        with limited(router.db_for_write(self._model)):
            entry, lost = unpacked(definition)
            fields = _Fields._unpack_fields(**entry)  # noqa: SLF001 -- as DatabaseScheduler does
            self._manager.update_or_create(name=name, defaults=fields)
        return lost


def database_identity(alias: str) -> str:
    """Return a digest of the time at which the tables were created, empty if that is unknown.

    A new database, which lacks the rows, has another identity. Raises Django's database errors.
    """
    if not MigrationRecorder(connections[alias]).has_table():
        return ""
    applied = MigrationRecorder.Migration.objects.using(alias).filter(app="django_celery_beat")
    try:
        with transaction.atomic(using=alias):
            first = applied.order_by("applied").values_list("applied", flat=True).first()
    except ProgrammingError:
        # The database user may not read the table.
        return ""
    return "" if first is None else hashlib.sha256(str(first).encode()).hexdigest()[:8]


class _Fields(ModelEntry):  # type: ignore[misc]  # django-celery-beat has no types
    """Converter of an entry of the settings to the fields of a row."""

    @classmethod
    def to_model_schedule(cls, schedule: Any) -> tuple[Any, str]:
        source = row_schedule(schedule, {clocked, TzAwareCrontab})
        micros = microseconds_of(source)
        if micros is not None:
            fields = {"every": micros, "period": MICROSECONDS}
            return IntervalSchedule.objects.filter(**fields).first() or IntervalSchedule.objects.create(
                **fields
            ), "interval"
        made: tuple[Any, str] = super().to_model_schedule(source)
        return made
