"""Statements that write run state to django-celery-beat's tables. Each is idempotent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any

from django.conf import settings
from django.db import OperationalError, connections, router, transaction
from django.db.models import Case, DateTimeField, F, Model, PositiveIntegerField, Q, Value, When

from ha_beat.django.entries import RowEntry, RunState
from ha_beat.django.instants import utc
from ha_beat.django.limits import limited, timed_out
from ha_beat.errors import HaBeatError

#: A row's last run that lies further in the future was written under a wrong clock and is ignored.
CLOCK_TOLERANCE = timedelta(seconds=2)

#: Rows per statement.
CHUNK = 500

#: From this many rows with one last run on, a separate statement for them is cheaper.
_ROWS_PER_STATEMENT = 8

#: One-off rows per statement. Each adds about ten parameters.
_FINISHED_PER_STATEMENT = 50

#: The new ``last_run_at``, the number of runs to add, and the ``last_run_at`` that the row is expected to have.
_Update = tuple[datetime, int, datetime | None]


@dataclass(frozen=True, slots=True)
class Run:
    """Run state of a row according to the ledger."""

    at: datetime
    run_count: int


class TableLocked(HaBeatError):
    """Another transaction has locked the whole table, or the row that marks changes."""


class RunStateTable:
    """Run state of the rows in the database."""

    def __init__(self, model: type[Model], changes: Any, now: Callable[[], datetime]) -> None:
        """``changes`` is django-celery-beat's ``PeriodicTasks``; ``now`` returns the scheduling time."""
        self._model: Any = model
        self._changes = changes
        self.now = now

    # Each returns the rows that another transaction has locked, and raises the database's errors, or `TableLocked`.

    def advance(self, runs: Mapping[str, Run], known: Mapping[str, RunState]) -> Sequence[str]:
        """Advance each row to its run state. A row that is there already, or ahead, stays as it is.

        ``known`` is the run state of these rows as last read.
        """

        def write(found: Mapping[str, RunState]) -> None:
            differing = self._advance(runs, found or known)
            if differing:
                # Another leader has written them since they were read.
                self._advance(runs, self._lock_rows(differing))

        return self._write_free(list(runs), write)

    def disable_finished(self, entries: Mapping[str, RowEntry]) -> Sequence[str]:
        """Disable one-off rows that have run, unless their schedule is no longer that of the entry."""

        def write(free: Mapping[str, RunState]) -> None:
            for chunk in chunks(list(free or entries), _FINISHED_PER_STATEMENT):
                # Its own task may have set its next run.
                same = (Q(pk=pk, **dict(entries[pk].schedule_columns)) for pk in chunk)
                self._disable(chunk, reduce(or_, same), total_run_count=0)

        return self._write_free(list(entries), write)

    def disable_expired(self, ids: Sequence[str]) -> Sequence[str]:
        """Disable those of the rows that have expired."""
        condition = Q(expires__lte=_stored(self.now()))
        return self._write_free(ids, lambda free: self._disable(free or ids, condition))

    def _write_free(self, ids: Sequence[str], write: Callable[[Mapping[str, RunState]], None]) -> Sequence[str]:
        """Write these rows; if that exceeds its time because of a lock, only those that are free.

        ``write`` receives the rows that were locked for it, or none if it has to write all.
        """
        try:
            with self._transaction():
                write({})
        except OperationalError as exc:
            if not timed_out(exc) or not connections[self._alias].features.has_select_for_update_skip_locked:
                raise
        else:
            return []
        try:
            with self._transaction():
                free = self._lock_rows(ids, skip_locked=True)
                if free:
                    write(free)
        except OperationalError as exc:
            if timed_out(exc):
                raise TableLocked(str(exc)) from exc
            raise
        return [pk for pk in ids if pk not in free]

    def _advance(self, runs: Mapping[str, Run], known: Mapping[str, RunState]) -> list[str]:
        """Write these rows where they have the ``known`` run state; return those that may have another."""
        latest = self.now() + CLOCK_TOLERANCE
        groups: dict[_Update, list[str]] = {}
        for pk, (last, count) in known.items():
            run = runs[pk]
            if last is None or last < run.at or last > latest:
                groups.setdefault((run.at, max(run.run_count - count, 0), last), []).append(pk)
        differing: list[str] = []
        single: dict[str, _Update] = {}
        for (at, added, last), ids in groups.items():
            if len(ids) < _ROWS_PER_STATEMENT:
                single |= dict.fromkeys(ids, (at, added, last))
                continue
            for chunk in chunks(ids):
                differing += self._update(chunk, _stored(at), added, None if last is None else _stored(last))
        for chunk in chunks(list(single)):
            runs_at = _instant_per_row({pk: single[pk][0] for pk in chunk})
            lasts = _instant_per_row({pk: single[pk][2] for pk in chunk})
            added_runs = Case(
                *(When(pk=pk, then=Value(single[pk][1])) for pk in chunk), output_field=PositiveIntegerField()
            )
            differing += self._update(chunk, runs_at, added_runs, lasts)
        return differing

    def _update(self, ids: Sequence[str], at: Any, added: Any, last: Any) -> Sequence[str]:
        """Update the enabled rows that have the last run ``last`` or none; return ``ids`` if any was not updated."""
        as_known = Q(last_run_at__isnull=True) if last is None else Q(last_run_at__isnull=True) | Q(last_run_at=last)
        rows = self._rows.filter(as_known, pk__in=ids, enabled=True)
        written = rows.update(last_run_at=at, total_run_count=F("total_run_count") + added)
        return [] if written == len(ids) else ids

    def _lock_rows(self, ids: Sequence[str], *, skip_locked: bool = False) -> dict[str, RunState]:
        """Lock these rows until the transaction ends; return their run state. Disabled rows are left out."""
        found: dict[str, RunState] = {}
        for chunk in chunks(ids):
            rows = self._rows.select_for_update(skip_locked=skip_locked).filter(pk__in=chunk, enabled=True)
            for pk, last, count in rows.order_by("pk").values_list("pk", "last_run_at", "total_run_count"):
                found[str(pk)] = (None if last is None else utc(last), count)
        return found

    def _disable(self, ids: Iterable[str], condition: Q, **reset: Any) -> None:
        rows = self._rows.filter(condition, pk__in=list(ids), enabled=True)
        # In the same transaction: without the mark the replicas would keep the entries, and no later pass would set it.
        if rows.update(enabled=False, last_run_at=None, **reset):
            self._changes.update_changed()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with limited(self._alias), transaction.atomic(using=self._alias):
            yield

    @property
    def _rows(self) -> Any:
        return self._model._default_manager.using(self._alias)  # noqa: SLF001 -- Django's documented way

    @property
    def _alias(self) -> str:
        return str(router.db_for_write(self._model))


def chunks(items: Sequence[str], size: int = CHUNK) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _instant_per_row(instants: Mapping[str, datetime | None]) -> Case | None:
    """Return an expression for the instant of each row; ``None`` if no row has one."""
    lines = [When(pk=pk, then=Value(_stored(at), DateTimeField())) for pk, at in instants.items() if at is not None]
    return Case(*lines, output_field=DateTimeField()) if lines else None


def _stored(instant: datetime) -> datetime:
    """Return the instant as django-celery-beat stores it: naive UTC if ``USE_TZ`` is off."""
    return instant if settings.USE_TZ else instant.astimezone(UTC).replace(tzinfo=None)
