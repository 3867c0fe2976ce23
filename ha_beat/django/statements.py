"""Statements that write run state to django-celery-beat's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import Any

from django.conf import settings
from django.db import connections, router, transaction
from django.db.models import Case, DateTimeField, F, Model, PositiveIntegerField, Q, Value, When

from ha_beat.django.database import limited
from ha_beat.django.entries import RowEntry
from ha_beat.row_store.backend import RunState, RunStateUpdate
from ha_beat.row_store.instants import utc


class DjangoStatements:
    """Statements of the writing thread."""

    def __init__(self, model: type[Model], changes: Any) -> None:
        """``changes`` is django-celery-beat's ``PeriodicTasks``."""
        self._model: Any = model
        self._changes = changes

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with limited(self._alias), transaction.atomic(using=self._alias):
            yield

    @property
    def skips_locked(self) -> bool:
        return bool(connections[self._alias].features.has_select_for_update_skip_locked)

    def lock(self, ids: Sequence[str], *, skip_locked: bool) -> dict[str, RunState]:
        rows = self._rows.select_for_update(skip_locked=skip_locked).filter(pk__in=ids, enabled=True)
        found = rows.order_by("pk").values_list("pk", "last_run_at", "total_run_count")
        return {str(pk): (None if last is None else utc(last), count) for pk, last, count in found}

    def advance(self, updates: Mapping[str, RunStateUpdate]) -> int:
        at = _per_row(updates, lambda update: _stored(update.at), DateTimeField())
        added = _per_row(updates, lambda update: update.added, PositiveIntegerField())
        expected = _per_row(updates, lambda update: update.expected and _stored(update.expected), DateTimeField())
        as_known = Q(last_run_at__isnull=True)
        if expected is not None:
            as_known |= Q(last_run_at=expected)
        rows = self._rows.filter(as_known, pk__in=list(updates), enabled=True)
        written: int = rows.update(last_run_at=at, total_run_count=F("total_run_count") + added)
        return written

    def disable_finished(self, entries: Mapping[str, RowEntry]) -> None:
        same = (Q(pk=pk, **dict(entry.schedule_columns)) for pk, entry in entries.items())
        self._disable(entries, reduce(or_, same), total_run_count=0)

    def disable_expired(self, ids: Sequence[str], now: datetime) -> None:
        self._disable(ids, Q(expires__lte=_stored(now)))

    def _disable(self, ids: Iterable[str], condition: Q, **reset: Any) -> None:
        rows = self._rows.filter(condition, pk__in=list(ids), enabled=True)
        # In the same transaction: without the mark the replicas would keep the entries, and nothing sets it later.
        if rows.update(enabled=False, last_run_at=None, **reset):
            self._changes.update_changed()

    @property
    def _rows(self) -> Any:
        return self._model._default_manager.using(self._alias)  # noqa: SLF001 -- Django's documented way

    @property
    def _alias(self) -> str:
        return str(router.db_for_write(self._model))


def _per_row(updates: Mapping[str, RunStateUpdate], value: Callable[[RunStateUpdate], Any], field: Any) -> Any:
    """Return the simplest expression for the value of each row; ``None`` if no row has a value."""
    values = {pk: value(update) for pk, update in updates.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    lines = (When(pk=pk, then=Value(found, field)) for pk, found in values.items() if found is not None)
    return Case(*lines, output_field=field)


def _stored(instant: datetime) -> datetime:
    """Return the instant as django-celery-beat stores it: naive UTC if ``USE_TZ`` is off."""
    return instant if settings.USE_TZ else instant.astimezone(UTC).replace(tzinfo=None)
