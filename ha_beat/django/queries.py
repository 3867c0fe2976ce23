"""Queries for the rows of django-celery-beat's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from django.db.models import Count, IntegerField, Prefetch, Q, QuerySet, Sum
from django_celery_beat.models import PeriodicTask

from ha_beat.django.database import limited
from ha_beat.row_store.backend import Row, Totals
from ha_beat.row_store.instants import utc

#: The columns that define an entry.
_DEFINITION = (
    *("name", "task", "args", "kwargs", "queue", "exchange", "routing_key", "headers", "priority"),
    *("expires", "expire_seconds", "one_off", "start_time"),
    *("interval_id", "interval__every", "interval__period"),
    *("crontab_id", "crontab__minute", "crontab__hour", "crontab__day_of_month", "crontab__month_of_year"),
    *("crontab__day_of_week", "crontab__timezone"),
    *("solar_id", "solar__event", "solar__latitude", "solar__longitude"),
    *("clocked_id", "clocked__clocked_time"),
)
_SCHEDULES = ("interval", "crontab", "solar", "clocked")
_RUN_STATE = ("last_run_at", "total_run_count", "date_changed")


class DjangoQueries:
    """Queries of the reading thread."""

    def __init__(self, changes: Any, enabled: Callable[[], QuerySet[Any]]) -> None:
        """``changes`` is django-celery-beat's ``PeriodicTasks``; ``enabled`` returns the query for the enabled rows."""
        self._changes = changes
        self._all_enabled = enabled

    def limited(self) -> AbstractContextManager[None]:
        return limited(self._all_enabled().db)

    def last_change(self) -> datetime | None:
        changed: datetime | None = self._changes.last_change()
        return changed

    @property
    def has_integer_keys(self) -> bool:
        return isinstance(self._all_enabled().model._meta.pk, IntegerField)  # noqa: SLF001 -- Django's documented way

    def page(self, after: Any, size: int) -> list[Row]:
        rows = self._enabled if after is None else self._enabled.filter(pk__gt=after)
        return _read(rows.order_by("pk")[:size])

    def of(self, ids: Sequence[Any]) -> list[Row]:
        return _read(self._enabled.filter(pk__in=ids))

    def models(self, ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        # Rows share the models of their schedules.
        rows = self._enabled.filter(pk__in=ids)
        found = list(rows.prefetch_related(*(self._schedules(name, rows.db) for name in _SCHEDULES)))
        # A schedule may be replaced and deleted between the queries.
        incomplete = [model.pk for model in found if model.scheduler is None]
        joined = self._enabled.select_related(*_SCHEDULES).filter(pk__in=incomplete)
        return ((model.pk, model) for model in (*(model for model in found if model.scheduler), *joined))

    def _schedules(self, name: str, database: str) -> Prefetch[Any]:
        """Return a query for the schedules in the database of the rows. A router might choose another one."""
        model = self._all_enabled().model._meta.get_field(name).related_model  # noqa: SLF001 -- as above
        return Prefetch(name, model._base_manager.using(database))  # noqa: SLF001 -- as above

    def saved_since(self, instant: datetime, limit: int) -> list[tuple[Any, datetime]]:
        rows = self._all.filter(date_changed__gte=instant).order_by("-date_changed")
        return list(rows.values_list("pk", "date_changed")[:limit])

    def existing(self, ids: Sequence[Any]) -> set[str]:
        return {str(pk) for pk in self._all.filter(pk__in=ids).values_list("pk", flat=True)}

    def totals(self, first: Any, until: Any) -> Totals:
        found = self._between(first, until).aggregate(rows=Count("pk"), sum=Sum("pk"))
        return found["rows"], found["sum"] or 0

    def ids(self, first: Any, until: Any) -> set[Any]:
        return set(self._between(first, until).values_list("pk", flat=True))

    def _between(self, first: Any, until: Any) -> QuerySet[Any]:
        rows = self._enabled if first is None else self._enabled.filter(pk__gte=first)
        return rows if until is None else rows.filter(pk__lt=until)

    @property
    def _enabled(self) -> QuerySet[Any]:
        return self._all_enabled().prefetch_related(None).order_by()

    @property
    def _all(self) -> QuerySet[Any]:
        enabled = self._all_enabled()
        rows: QuerySet[Any] = enabled.model._default_manager.using(enabled.db)  # noqa: SLF001 -- as above
        return rows.order_by()


def _read(rows: QuerySet[Any]) -> list[Row]:
    width = len(_DEFINITION)
    found = rows.values_list("pk", *_DEFINITION, *_RUN_STATE)
    return [Row(pk, tuple(values[:width]), *values[width:]) for pk, *values in found]


def last_runs() -> dict[str, tuple[datetime, int]]:
    """Return the last run in UTC and the run count of each enabled task that has run, by name."""
    rows = PeriodicTask.objects.filter(enabled=True, last_run_at__isnull=False)
    return {name: (utc(at), count) for name, at, count in rows.values_list("name", "last_run_at", "total_run_count")}


def is_disabled(entry: str) -> bool:
    """True if a task with this name or primary key is disabled."""
    named = Q(name=entry) | (Q(pk=int(entry)) if entry.isdecimal() else Q())
    return bool(PeriodicTask.objects.filter(named, enabled=False).exists())
