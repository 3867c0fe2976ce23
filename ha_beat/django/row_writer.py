"""Writing of run state to django-celery-beat's tables.

Each write is idempotent. It covers only runs of this replica's current or last term.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any

from django.conf import settings
from django.db import router, transaction
from django.db.models import Case, DateTimeField, F, Model, PositiveIntegerField, Q, Value, When

from ha_beat.django.entries import RowEntry
from ha_beat.django.instants import utc
from ha_beat.django.row_reader import chunks
from ha_beat.reasons import Verdict
from ha_beat.store.ledger import LedgerRow

#: A row's last run that lies further in the future was written under a wrong clock and is ignored.
CLOCK_TOLERANCE = timedelta(seconds=2)

#: From this many rows with one last run on, a separate statement for them is cheaper.
_ROWS_PER_STATEMENT = 8

#: One-off rows per statement. Each adds about ten parameters.
_FINISHED_PER_STATEMENT = 50

#: ``last_run_at`` and ``total_run_count`` of a row.
_RunState = tuple[datetime | None, int]

#: The new ``last_run_at``, the number of runs to add, and the ``last_run_at`` that the row is expected to have.
_Update = tuple[datetime, int, datetime | None]


#: Verdicts that count as a run.
_RAN = frozenset({Verdict.ENQUEUED, Verdict.UNCERTAIN})


@dataclass(frozen=True, slots=True)
class _Run:
    """Run state of a row according to the ledger."""

    at: datetime
    run_count: int


class RowWriter:
    """Writer of the rows' run state. The main loop queues updates; the sync thread writes them in bulk."""

    def __init__(
        self,
        model: type[Model],
        changes: Any,
        now: Callable[[], datetime],
        entries: Callable[[], Mapping[str, RowEntry]],
        settled: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Create a writer.

        Args:
            model: django-celery-beat's ``PeriodicTask``.
            changes: django-celery-beat's ``PeriodicTasks``, which marks the schedule as changed.
            now: Return the scheduling time.
            entries: Return the entries as last read, by primary key.
            settled: True if the leader has no verdict left to give for the entry with this primary key.
        """
        self._model: Any = model
        self._changes = changes
        self._now = now
        self._entries = entries
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._settled = settled
        self._finished: dict[str, RowEntry] = {}

    def record(self, entry_id: str, row: LedgerRow) -> None:
        """Queue an update of the row's run state if the ledger row records a run."""
        if row.verdict in _RAN:
            with self._lock:
                self._runs[entry_id] = _Run(row.base, row.run_count)

    def record_missing(self, ledger: Mapping[str, str]) -> None:
        """Queue the runs in the ledger's rows that a previous leader did not write."""
        for entry_id, entry in self._entries().items():
            row = LedgerRow.parse(ledger.get(entry_id, ""))
            if row is not None and row.run_count > entry.row_run_count and not entry.once:
                self.record(entry_id, row)

    def disable_finished(self, entry: RowEntry) -> None:
        """Queue the disabling of a one-off row that has run, unless its schedule is changed until it is written."""
        with self._lock:
            self._finished[entry.id] = entry

    def write(self) -> None:
        """Write the queued updates; keep them if that fails. Raises the database's errors."""
        runs, finished = self._take()
        if not (runs or finished):
            return
        try:
            self._write_runs({pk: run for pk, run in runs.items() if pk not in finished})
            for chunk in chunks(list(finished), _FINISHED_PER_STATEMENT):
                # Its own task may have set its next run.
                same = (Q(pk=pk, **dict(finished[pk].schedule_columns)) for pk in chunk)
                self._disable(reduce(or_, same), total_run_count=0)
        except BaseException:
            with self._lock:
                self._runs = runs | self._runs
                self._finished = finished | self._finished
            raise

    def write_after_term(self) -> None:
        """Write the queued runs of a term that has ended, once.

        The next leader restores a failed write from the ledger. Finished rows are left to it: they may have been
        enabled again.
        """
        runs, _ = self._take()
        if runs:
            self._write_runs(runs)

    def disable_expired(self) -> None:
        """Disable the rows that have expired, once each instant before that has its verdict."""
        now = self._now()
        entries = self._entries().items()
        expired = [pk for pk, entry in entries if entry.expires is not None and entry.expires <= now]
        expired = [pk for pk in expired if self._settled(pk)]
        if expired:
            self._disable(Q(pk__in=expired, expires__lte=_stored(now)))

    def _take(self) -> tuple[dict[str, _Run], dict[str, RowEntry]]:
        with self._lock:
            runs, finished = self._runs, self._finished
            self._runs, self._finished = {}, {}
        return runs, finished

    def _write_runs(self, runs: Mapping[str, _Run]) -> None:
        """Advance each row to its run state. A row that is there already, or ahead, stays as it is."""
        entries = self._entries()
        runs = {pk: run for pk, run in runs.items() if pk in entries}
        known = {pk: (entries[pk].row_last_run_at, entries[pk].row_run_count) for pk in runs}
        with transaction.atomic(using=self._alias):
            differing = self._advance(runs, known)
            if differing:
                # Another leader has written them since they were read.
                self._advance(runs, self._lock_rows(differing))
        for pk, run in runs.items():
            # In this order: a count without a last run stands for a row that was disabled.
            entries[pk].row_last_run_at = run.at
            entries[pk].row_run_count = max(run.run_count, entries[pk].row_run_count)

    def _advance(self, runs: Mapping[str, _Run], known: Mapping[str, _RunState]) -> list[str]:
        """Write these rows where they have the ``known`` run state; return those that may have another."""
        latest = self._now() + CLOCK_TOLERANCE
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

    def _lock_rows(self, ids: Sequence[str]) -> dict[str, _RunState]:
        """Lock these rows until the transaction ends; return their run state. Disabled rows are left out."""
        found: dict[str, _RunState] = {}
        for chunk in chunks(ids):
            rows = self._rows.select_for_update().filter(pk__in=chunk, enabled=True).order_by("pk")
            for pk, last, count in rows.values_list("pk", "last_run_at", "total_run_count"):
                found[str(pk)] = (None if last is None else utc(last), count)
        return found

    def _disable(self, condition: Q, **reset: Any) -> None:
        # In one transaction: without the mark the replicas would keep the entries, and no later pass would set it.
        with transaction.atomic(using=self._alias):
            if self._rows.filter(condition, enabled=True).update(enabled=False, last_run_at=None, **reset):
                self._changes.update_changed()

    @property
    def _rows(self) -> Any:
        return self._model._default_manager.using(self._alias)  # noqa: SLF001 -- Django's documented way

    @property
    def _alias(self) -> str:
        return str(router.db_for_write(self._model))


def _instant_per_row(instants: Mapping[str, datetime | None]) -> Case | None:
    """Return an expression for the instant of each row; ``None`` if no row has one."""
    lines = [When(pk=pk, then=Value(_stored(at), DateTimeField())) for pk, at in instants.items() if at is not None]
    return Case(*lines, output_field=DateTimeField()) if lines else None


def _stored(instant: datetime) -> datetime:
    """Return the instant as django-celery-beat stores it: naive UTC if ``USE_TZ`` is off."""
    return instant if settings.USE_TZ else instant.astimezone(UTC).replace(tzinfo=None)
