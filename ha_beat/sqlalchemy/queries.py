"""Queries for the rows of sqlalchemy-celery-beat's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Enum, Integer, Select, String, and_, func, select, type_coerce
from sqlalchemy.orm import Session
from sqlalchemy_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, SolarSchedule

from ha_beat.row_store.backend import Row, Totals
from ha_beat.row_store.instants import utc
from ha_beat.sqlalchemy.database import SqlDatabase

_T = TypeVar("_T")

#: Errors of SQLAlchemy for a value that the column type does not allow.
_MALFORMED = (LookupError, ValueError)

#: Columns that define an entry.
_TASK = (
    *("name", "task", "args", "kwargs", "queue", "exchange", "routing_key", "headers", "priority"),
    *("expires", "expire_seconds", "one_off", "start_time", "discriminator", "schedule_id"),
)

#: Columns that define a schedule.
SCHEDULES: dict[Any, tuple[str, ...]] = {
    IntervalSchedule: ("every", "period"),
    CrontabSchedule: ("minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone"),
    SolarSchedule: ("event", "latitude", "longitude"),
    ClockedSchedule: ("clocked_time",),
}


class SqlQueries:
    """Queries of the reading thread."""

    def __init__(self, database: SqlDatabase, model: Any, changes: Any) -> None:
        """``changes`` is sqlalchemy-celery-beat's ``PeriodicTaskChanged``."""
        self._database = database
        self._model = model
        self._changes = changes

    def limited(self) -> AbstractContextManager[None]:
        return self._database.transaction()

    def last_change(self) -> datetime | None:
        found = self._database.rows(select(self._changes.last_update).where(self._changes.id == 1))
        return utc(found[0][0]) if found else None

    @property
    def has_integer_keys(self) -> bool:
        return isinstance(self._model.id.type, Integer)

    def page(self, after: Any, size: int) -> list[Row]:
        rows = self._rows if after is None else self._rows.where(self._model.id > after)
        rows = rows.order_by(self._model.id).limit(size)
        try:
            return self._read(rows)
        except _MALFORMED:
            return self.of([pk for (pk,) in self._database.rows(rows.with_only_columns(self._model.id))])

    def of(self, ids: Sequence[Any]) -> list[Row]:
        rows = self._rows.order_by(self._model.id)

        def malformed(pk: Any, exc: Exception) -> Row:
            return Row(pk, (f"row {pk}", str(exc)), None, 0, None)

        return _read_separately(ids, lambda some: self._read(rows.where(self._model.id.in_(some))), malformed)

    def models(self, ids: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
        return _read_separately(ids, self._models, lambda pk, exc: (pk, exc))

    def _models(self, ids: Sequence[Any]) -> list[tuple[Any, Any]]:
        rows = select(self._model).where(self._model.enabled, self._model.id.in_(ids))
        with self._database.transaction(), Session(self._database.connection, expire_on_commit=False) as session:
            found = list(session.scalars(rows))
            if any(model.schedule_model is None for model in found):
                # A schedule may be replaced between the queries.
                found = list(session.scalars(rows.execution_options(populate_existing=True)))
            session.expunge_all()
        return [(model.id, model) for model in found]

    def saved_since(self, instant: datetime, limit: int) -> list[tuple[Any, datetime]]:
        pk, changed = self._model.id, self._model.date_changed
        rows = select(pk, changed).where(changed >= instant).order_by(changed.desc()).limit(limit)
        return [(found, utc(at)) for found, at in self._database.rows(rows)]

    def existing(self, ids: Sequence[Any]) -> set[str]:
        rows = select(self._model.id).where(self._model.id.in_([int(pk) for pk in ids]))
        return {str(pk) for (pk,) in self._database.rows(rows)}

    def totals(self, first: Any, until: Any) -> Totals:
        pk = self._model.id
        [(rows, total)] = self._database.rows(self._between(select(func.count(pk), func.sum(pk)), first, until))
        return rows, int(total or 0)

    def ids(self, first: Any, until: Any) -> set[Any]:
        return {pk for (pk,) in self._database.rows(self._between(select(self._model.id), first, until))}

    def _between(self, rows: Select[Any], first: Any, until: Any) -> Select[Any]:
        rows = rows.where(self._model.enabled)
        rows = rows if first is None else rows.where(self._model.id >= first)
        return rows if until is None else rows.where(self._model.id < until)

    @property
    def _rows(self) -> Select[Any]:
        task = self._model
        columns = [getattr(task, name) for name in _TASK]
        columns += [_plain(getattr(kind, name)) for kind, names in SCHEDULES.items() for name in names]
        rows = select(task.id, *columns, task.last_run_at, task.total_run_count, task.date_changed)
        rows = rows.select_from(task)
        for kind in SCHEDULES:
            own = and_(kind.id == task.schedule_id, task.discriminator == kind.__name__.lower())
            rows = rows.outerjoin(kind, own)
        return rows.where(task.enabled)

    def _read(self, rows: Select[Any]) -> list[Row]:
        return [Row(pk, tuple(values[:-3]), *values[-3:]) for pk, *values in self._database.rows(rows)]


def _read_separately(
    ids: Sequence[Any], read: Callable[[Sequence[Any]], list[_T]], malformed: Callable[[Any, Exception], _T]
) -> list[_T]:
    """Read these rows. If a value is malformed, halve them until its row is found, and call ``malformed`` for it."""
    try:
        return read(ids) if ids else []
    except _MALFORMED as exc:
        if len(ids) == 1:
            return [malformed(ids[0], exc)]
    middle = len(ids) // 2
    return [*_read_separately(ids[:middle], read, malformed), *_read_separately(ids[middle:], read, malformed)]


def _plain(column: Any) -> Any:
    """Return an enumeration as a text, so that a row with an unknown value does not fail the others."""
    return type_coerce(column, String) if isinstance(column.type, Enum) else column


def last_runs(database: SqlDatabase, model: Any) -> dict[str, tuple[datetime, int]]:
    """Return the last run in UTC and the run count of each enabled task that has run, by name."""
    rows = select(model.name, model.last_run_at, model.total_run_count)
    found = database.rows(rows.where(model.enabled, model.last_run_at.is_not(None)))
    return {name: (utc(at), count) for name, at, count in found}
