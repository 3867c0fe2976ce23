"""Reading of the schedule from django-celery-beat's tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django_celery_beat.models import PeriodicTask

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.django.entries import RowEntry
from ha_beat.django.instants import utc
from ha_beat.django.limits import limited
from ha_beat.django.run_state import chunks
from ha_beat.reasons import EntryFault

#: Seconds between complete reads. ``QuerySet.update()`` does not mark the schedule as changed.
FULL_READ_INTERVAL = 300.0

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
_RUN_STATE = ("last_run_at", "total_run_count", "date_changed")

Values = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Enabled rows as last read. ``number`` grows with each read that found a difference."""

    number: int
    by_name: Mapping[str, RowEntry]
    by_id: Mapping[str, RowEntry]


class RowReader:
    """Reader of the enabled rows.

    The sync thread calls :meth:`read` and :meth:`read_if_changed`; other threads use ``snapshot``, :meth:`removed` and
    :meth:`forget_removed`.
    """

    def __init__(
        self,
        *,
        changes: Any,
        enabled: Callable[[], QuerySet[Any]],
        make_entry: Callable[[Any], RowEntry],
        clock: Clock,
        now: Callable[[], datetime],
        emit: Callable[[events.Event], None],
    ) -> None:
        """Create a reader.

        Args:
            changes: django-celery-beat's ``PeriodicTasks``, whose ``last_change()`` marks the schedule as changed.
            enabled: Return the query for the enabled rows.
            make_entry: Make the entry of a row. An exception leaves the row out.
            clock: Measures the time between complete reads.
            now: Return the scheduling time.
            emit: Receives the events.
        """
        self._changes = changes
        self._enabled = enabled
        self._make_entry = make_entry
        self._clock = clock
        self._now = now
        self._emit = emit
        #: Replaced as a whole; ``None`` before the first read.
        self.snapshot: Snapshot | None = None
        self._lock = threading.Lock()
        self._removed: dict[str, int] = {}
        self._definitions: dict[str, Values] = {}
        self._unreadable: dict[str, Values] = {}
        self._last_change: object = None
        self._full_read_due = 0.0
        self._checked_at: datetime | None = None

    def entries(self) -> Mapping[str, RowEntry]:
        """Return the entries as last read, by primary key."""
        return self.snapshot.by_id if self.snapshot else {}

    def removed(self) -> dict[str, int]:
        """Return the entries that were disabled or deleted since they were last armed, with the snapshot's number."""
        with self._lock:
            return dict(self._removed)

    def forget_removed(self, entry_id: str, number: int) -> None:
        """Forget a removal that the ledger has recorded, unless a later snapshot removed the entry again."""
        with self._lock:
            if self._removed.get(entry_id) == number:
                del self._removed[entry_id]

    def read_if_changed(self) -> None:
        """Read the rows if they are marked as changed or a complete read is due. Raises the database's errors."""
        now = self._now()
        with self._limited():
            if self._clock.elapsed() >= self._full_read_due or self._changes.last_change() != self._last_change:
                self._read()
        self._checked_at = now

    def read(self) -> None:
        """Read the rows and replace the snapshot if they differ from it. Raises the database's errors."""
        with self._limited():
            self._read()

    def _limited(self) -> AbstractContextManager[None]:
        return limited(self._enabled().db)

    def _read(self) -> None:
        # Before the rows: a change during the read is then found by the next check.
        last_change = self._changes.last_change()
        began, now = self._clock.elapsed(), self._now()
        before = self.entries()
        definitions, run_states = self._select()
        changed = [pk for pk, definition in definitions.items() if self._definitions.get(pk) != definition]
        made = {**before, **dict.fromkeys(changed), **self._make(changed, definitions)}
        entries = {pk: entry for pk in definitions if (entry := made.get(pk)) is not None}
        for pk, entry in entries.items():
            entry.update_run_state(*run_states[pk])
        for pk in changed:
            if pk in entries:
                entries[pk].mark_edited(run_states[pk][2], self._checked_at, now)
        self._definitions, self._last_change = definitions, last_change
        self._full_read_due = began + FULL_READ_INTERVAL
        removed = before.keys() - entries.keys()
        if changed or removed or self.snapshot is None:
            number = self.snapshot.number + 1 if self.snapshot else 1
            with self._lock:
                self._removed |= dict.fromkeys(removed, number)
            self.snapshot = Snapshot(number, {entry.name: entry for entry in entries.values()}, entries)

    def _select(self) -> tuple[dict[str, Values], dict[str, Values]]:
        """Return each row's definition and run state by primary key."""
        definitions: dict[str, Values] = {}
        run_states: dict[str, Values] = {}
        rows = self._enabled().prefetch_related(None).order_by()
        width = len(_DEFINITION)
        for pk, *values in rows.values_list("pk", *_DEFINITION, *_RUN_STATE):
            definitions[str(pk)] = tuple(values[:width])
            run_states[str(pk)] = tuple(values[width:])
        return definitions, run_states

    def _make(self, ids: Sequence[str], definitions: Mapping[str, Values]) -> dict[str, RowEntry]:
        """Make the entries of these rows. A row that can't be read is reported once per definition."""
        made: dict[str, RowEntry] = {}
        for model in self._models(ids, everything=len(ids) == len(definitions)):
            pk = str(model.pk)
            try:
                made[pk] = self._make_entry(model)
                self._unreadable.pop(pk, None)
            except Exception as exc:
                definition = definitions.get(pk, ())
                if self._unreadable.get(pk) != definition:
                    self._unreadable[pk] = definition
                    self._emit(events.EntryFailed(model.name, EntryFault.INVALID, str(exc)))
        return made

    def _models(self, ids: Sequence[str], *, everything: bool) -> Iterable[Any]:
        rows = self._enabled().prefetch_related(None).select_related("interval", "crontab", "solar", "clocked")
        if everything:
            return rows
        return (model for chunk in chunks(ids) for model in rows.filter(pk__in=chunk))


def precompute_next(entries: Iterable[RowEntry], position: Callable[[str], datetime | None]) -> None:
    """Compute each entry's next instant while standing by, so that a takeover finds it cached.

    ``position`` returns the cluster's position of an entry by its id.
    """
    for entry in entries:
        known = [at for at in (position(entry.id), entry.stored_last_run_at) if at is not None]
        if known:
            # The leader reports a schedule that raises.
            with suppress(Exception):
                entry.instants.next_after(max(known))


def last_runs() -> dict[str, tuple[datetime, int]]:
    """Return the last run in UTC and the run count of each enabled task that has run, by name."""
    rows = PeriodicTask.objects.filter(enabled=True, last_run_at__isnull=False)
    return {name: (utc(at), count) for name, at, count in rows.values_list("name", "last_run_at", "total_run_count")}
