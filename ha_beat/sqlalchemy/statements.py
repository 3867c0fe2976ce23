"""Statements that write run state to sqlalchemy-celery-beat's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Integer, Update, and_, case, exists, literal, or_, select, update

from ha_beat.row_store.backend import RunState, RunStateUpdate
from ha_beat.row_store.instants import utc
from ha_beat.sqlalchemy.database import SqlDatabase
from ha_beat.sqlalchemy.entries import RowEntry


class SqlStatements:
    """Statements of the writing thread."""

    def __init__(self, database: SqlDatabase, model: Any, changes: Any) -> None:
        """``changes`` is sqlalchemy-celery-beat's ``PeriodicTaskChanged``."""
        self._database = database
        self._model = model
        self._changes = changes

    def transaction(self) -> AbstractContextManager[None]:
        return self._database.transaction()

    @property
    def skips_locked(self) -> bool:
        return self._database.engine.dialect.name in ("postgresql", "mysql")

    def lock(self, ids: Sequence[str], *, skip_locked: bool) -> dict[str, RunState]:
        task = self._model
        rows = select(task.id, task.last_run_at, task.total_run_count).where(task.enabled, task.id.in_(map(int, ids)))
        found = self._database.rows(rows.order_by(task.id).with_for_update(skip_locked=skip_locked))
        return {str(pk): (None if last is None else utc(last), count) for pk, last, count in found}

    def advance(self, updates: Mapping[str, RunStateUpdate]) -> int:
        task, instant = self._model, DateTime(timezone=True)
        at = self._per_row(updates, lambda update: update.at, instant)
        added = self._per_row(updates, lambda update: update.added, Integer())
        expected = self._per_row(updates, lambda update: update.expected, instant)
        as_known: ColumnElement[bool] = task.last_run_at.is_(None)
        if expected is not None:
            as_known = or_(as_known, task.last_run_at == expected)
        rows = self._update(updates).where(as_known)
        return self._database.write(rows.values(last_run_at=at, total_run_count=task.total_run_count + added))

    def disable_finished(self, entries: Mapping[str, RowEntry]) -> None:
        self._disable(entries, or_(*(self._unchanged(entry) for entry in entries.values())), total_run_count=0)

    def disable_expired(self, ids: Sequence[str], now: datetime) -> None:
        self._disable(ids, self._model.expires <= now)

    def _unchanged(self, entry: RowEntry) -> ColumnElement[bool]:
        """Return the condition that the row has the schedule of the entry."""
        task, columns = self._model, dict(entry.schedule_columns)
        kind = columns.pop("schedule")
        return and_(
            task.id == int(entry.id),
            task.one_off == columns.pop("one_off"),
            task.start_time == columns.pop("start_time"),
            task.discriminator == kind.__name__.lower(),
            task.schedule_id == columns["id"],
            exists().where(*(getattr(kind, column) == value for column, value in columns.items())),
        )

    def _disable(self, ids: Iterable[str], condition: ColumnElement[bool], **reset: Any) -> None:
        if self._database.write(self._update(ids).where(condition).values(enabled=False, **reset)):
            # In the same transaction: without the mark the replicas would keep the entries, and nothing sets it later.
            self._changes.update_changed(None, self._database.connection, None)

    def _update(self, ids: Iterable[str]) -> Update:
        """Return an update of the enabled ones of these rows that does not count as an edit."""
        task = self._model
        rows = update(task).where(task.enabled, task.id.in_([int(pk) for pk in ids]))
        return rows.values(date_changed=task.date_changed)

    def _per_row(self, updates: Mapping[str, RunStateUpdate], value: Callable[[RunStateUpdate], Any], kind: Any) -> Any:
        """Return the simplest expression for the value of each row; ``None`` if no row has a value."""
        values = {pk: value(update) for pk, update in updates.items()}
        if len(set(values.values())) == 1:
            found = next(iter(values.values()))
            return None if found is None else literal(found, kind)
        lines = ((self._model.id == int(pk), literal(found, kind)) for pk, found in values.items() if found is not None)
        return case(*lines)
