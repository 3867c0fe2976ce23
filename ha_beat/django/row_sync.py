"""Reads the schedule from the database and writes the rows' run state to it, all in one thread of its own.

Beat's main loop never waits for the database: it works from the last :class:`Snapshot`, and leaves what the rows shall
say of their runs here. What is written can be written again without harm, and is of runs of this replica's own term, or
as a leader of the one before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery
from django.conf import settings
from django.db import InterfaceError, close_old_connections, connections, router, transaction
from django.db.models import Case, DateTimeField, F, Model, PositiveIntegerField, Q, QuerySet, Value, When
from django.db.utils import Error as AnyDatabaseError

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.django.entries import RowEntry
from ha_beat.django.instants import utc
from ha_beat.errors import StoreError
from ha_beat.store.lease import Term

logger = logging.getLogger("ha_beat")

#: Seconds between looks at django-celery-beat's mark of changes, and between writes of the rows.
POLL_INTERVAL = 1.0

#: Seconds after which everything is read again: ``QuerySet.update()`` leaves no mark.
FULL_READ_INTERVAL = 300.0

#: A row that says that it will have run is not believed.
TOLERANCE = timedelta(seconds=2)

#: Rows in one statement.
_CHUNK = 500

#: So many rows that ran at the same instant get a statement of their own, which is cheaper.
_WORTH_A_STATEMENT = 8

#: Whatever a database that is away, or not migrated, may raise.
_DATABASE_ERRORS = (AnyDatabaseError, InterfaceError, OSError)

#: What makes an entry. Of the rest, ``_RUN_STATE`` is read too, and the description is nobody's business here.
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The enabled rows as last read, by name. ``number`` grows with each reading that found something else."""

    number: int
    entries: Mapping[str, RowEntry]


@dataclass(frozen=True, slots=True)
class Ran:
    """A row's run state as the ledger has it."""

    at: datetime
    run_count: int


@dataclass(slots=True)
class _Duties:
    """What the main loop has asked for since the thread last looked."""

    ran: dict[str, Ran] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)


class Rows:
    """The thread that talks to the database. Started after any fork."""

    def __init__(
        self,
        *,
        app: Celery,
        model: type[Model],
        changes: Any,
        enabled: Callable[[], QuerySet[Any]],
        entry: Callable[[Any], RowEntry],
        clock: Clock,
        now: Callable[[], datetime],
        term: Callable[[], Term | None],
        begin_term: Callable[[Term], None],
        emit: Callable[[events.Event], None],
        position: Callable[[str], datetime | None],
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        """``now`` is the scheduling time. ``position`` is where the cluster is known to stand with an entry."""
        self._app = app
        self._model: Any = model
        self._changes = changes
        self._enabled = enabled
        self._entry = entry
        self._clock = clock
        self._now = now
        self._term = term
        self._begin_term = begin_term
        self._emit = emit
        self._position = position
        self._poll_interval = poll_interval
        self._wake = threading.Event()
        #: Set when the process ends; what is left to be written is kept until then.
        self.closing = False
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._duties = _Duties()
        self._departed: dict[str, int] = {}
        # Of the thread alone.
        self._known: dict[str, tuple[Any, ...]] = {}
        self._unreadable: dict[str, tuple[Any, ...]] = {}
        self._mark: object = None
        self._full_read_due = 0.0
        self._looked_at: datetime | None = None
        self._seen = self._begun = ""
        self._failing_since: float | None = None
        # Each is written by the thread, and read by others as a whole.
        self.snapshot: Snapshot | None = None
        self.read_in = ""

    # --- For the main loop

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ha_beat-rows", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look now, not only when the interval is over."""
        self._wake.set()

    def ran(self, entry_id: str, ran: Ran) -> None:
        """A row has run; it shall say so soon."""
        with self._guard:
            self._duties.ran[entry_id] = ran

    def finish(self, entry_id: str) -> None:
        """A row that is to run once has run: it is to be disabled."""
        with self._guard:
            self._duties.finished.add(entry_id)
        self._wake.set()

    def departed(self) -> dict[str, int]:
        """Entries that were off at some time since they were last armed, with the number of that reading."""
        with self._guard:
            return dict(self._departed)

    def forget_departed(self, entry_id: str, number: int) -> None:
        """The ledger knows that the entry was off."""
        with self._guard:
            if self._departed.get(entry_id) == number:
                del self._departed[entry_id]

    def close(self, seconds: float) -> None:
        """Write what is left and end, within ``seconds``; later the thread ends with the process."""
        self.closing = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    # --- The thread

    def _run(self) -> None:
        self._app.set_current()
        while not self.closing:
            self._turn()
            self._wake.wait(self._poll_interval)
            self._wake.clear()
        try:
            self._write(leaving=True)
        except _DATABASE_ERRORS as exc:
            logger.warning("The last runs could not be written to their rows; the next leader will: %s", exc)
        connections.close_all()

    def _turn(self) -> None:
        try:
            close_old_connections()
            self._work()
        except (*_DATABASE_ERRORS, StoreError) as exc:
            self._failed(f"{type(exc).__name__}: {exc}".strip())
        except Exception as exc:
            logger.exception("Keeping the schedule failed; trying again", extra={"action": "ScheduleStoreFailed"})
            self._failed(f"{type(exc).__name__}: {exc}")
        else:
            if self._failing_since is not None:
                after, self._failing_since = self._clock.elapsed() - self._failing_since, None
                self._emit(events.ScheduleStoreBack(after))

    def _failed(self, why: str) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock.elapsed()
            self._emit(events.ScheduleStoreFailed(why, self.snapshot is not None))
        # A connection that was cut stays useless.
        connections.close_all()

    def _work(self) -> None:
        term = self._term()
        if term is None:
            if not self.closing:
                self._write_what_is_left()
                self._read_if_changed()
                self._keep_warm()
            return
        if self._seen != term.nonce:
            # The main loop is taking over: let it.
            self._seen = term.nonce
            return
        if self.read_in != term.nonce:
            self._read()
            self.read_in = term.nonce
        try:
            if self._begun != term.nonce:
                self._begin_term(term)
                self._begun = term.nonce
            self._write()
            self._disable_expired()
        finally:
            # An edit counts, though nothing can be written.
            self._read_if_changed()

    # --- Reading

    def _read_if_changed(self) -> None:
        now = self._now()
        if self._clock.elapsed() >= self._full_read_due or self._changes.last_change() != self._mark:
            self._read()
        self._looked_at = now

    def _read(self) -> None:
        # The mark first: what changes while the rows are read is then found at the next look.
        mark = self._changes.last_change()
        began, now = self._clock.elapsed(), self._now()
        before = self.snapshot.entries if self.snapshot else {}
        by_id = {entry.id: entry for entry in before.values()}
        definitions, run_states = self._definitions()
        changed = [pk for pk, definition in definitions.items() if self._known.get(pk) != definition]
        to_make = set(changed)
        made = self._make(changed, definitions, everything=len(changed) == len(definitions))
        entries: dict[str, RowEntry] = {}
        for pk in definitions:
            entry = made.get(pk) if pk in to_make else by_id.get(pk)
            if entry is not None:
                entry.note(*run_states[pk])
                if pk in to_make:
                    entry.seen(run_states[pk][2], self._looked_at, now)
                entries[entry.name] = entry
        gone = by_id.keys() - {entry.id for entry in entries.values()}
        self._known, self._mark = definitions, mark
        self._full_read_due = began + FULL_READ_INTERVAL
        if changed or gone or self.snapshot is None:
            number = self.snapshot.number + 1 if self.snapshot else 1
            with self._guard:
                self._departed |= dict.fromkeys(gone, number)
            self.snapshot = Snapshot(number, entries)

    def _definitions(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]]:
        definitions: dict[str, tuple[Any, ...]] = {}
        run_states: dict[str, tuple[Any, ...]] = {}
        rows = self._enabled().prefetch_related(None).order_by()
        width = len(_DEFINITION)
        for pk, *values in rows.values_list("pk", *_DEFINITION, *_RUN_STATE):
            definitions[str(pk)] = tuple(values[:width])
            run_states[str(pk)] = tuple(values[width:])
        return definitions, run_states

    def _make(
        self, ids: Sequence[str], definitions: Mapping[str, tuple[Any, ...]], *, everything: bool
    ) -> dict[str, RowEntry]:
        made: dict[str, RowEntry] = {}
        for model in self._models(ids, everything=everything):
            pk = str(model.pk)
            try:
                made[pk] = self._entry(model)
                self._unreadable.pop(pk, None)
            except Exception as exc:
                definition = definitions.get(pk, ())
                if self._unreadable.get(pk) != definition:
                    self._unreadable[pk] = definition
                    self._emit(events.EntryFailed(model.name, f"it is left out: {exc}"))
        return made

    def _models(self, ids: Sequence[str], *, everything: bool) -> Iterable[Any]:
        rows = self._enabled().prefetch_related(None).select_related("interval", "crontab", "solar", "clocked")
        if everything:
            return rows
        return (model for chunk in _chunks(ids) for model in rows.filter(pk__in=chunk))

    def _keep_warm(self) -> None:
        """Have the next instant of every row ready: a takeover has to know them all before its first message."""
        entries = self.snapshot.entries if self.snapshot else {}
        for entry in entries.values():
            known = [at for at in (self._position(entry.id), entry.stored_last_run_at) if at is not None]
            # One whose schedule raises is told of by the leader.
            if known:
                with suppress(Exception):
                    entry.instants.next_after(max(known))

    # --- Writing

    def _write_what_is_left(self) -> None:
        """Of a term that is over: once. What can't be written now, the next leader finds missing by itself."""
        with self._guard:
            duties, self._duties = self._duties, _Duties()
        if duties.ran:
            self._write_runs(duties.ran)

    def _write(self, *, leaving: bool = False) -> None:
        with self._guard:
            duties, self._duties = self._duties, _Duties()
        if not (duties.ran or duties.finished):
            return
        try:
            if leaving:
                close_old_connections()
            self._write_runs({pk: ran for pk, ran in duties.ran.items() if pk not in duties.finished})
            if duties.finished:
                self._disable(Q(pk__in=list(duties.finished), one_off=True), total_run_count=0)
        except BaseException:
            with self._guard:
                self._duties.ran = duties.ran | self._duties.ran
                self._duties.finished |= duties.finished
            raise

    def _write_runs(self, runs: Mapping[str, Ran]) -> None:
        """Move each row's run state on, never back, and by nothing where it is there already."""
        entries = {entry.id: entry for entry in self.snapshot.entries.values()} if self.snapshot else {}
        runs = {pk: ran for pk, ran in runs.items() if pk in entries}
        known = {pk: (entries[pk].row_last_run_at, entries[pk].row_run_count) for pk in runs}
        with transaction.atomic(using=self._alias):
            others = self._move(runs, known)
            if others:
                # Another leader has written them since they were read, or wrote late.
                self._move(runs, self._locked(others))
        for pk, ran in runs.items():
            # In this order: a count without its instant is a row's that was switched off.
            entries[pk].row_last_run_at = ran.at
            entries[pk].row_run_count = max(ran.run_count, entries[pk].row_run_count)

    def _move(self, runs: Mapping[str, Ran], known: Mapping[str, tuple[datetime | None, int]]) -> list[str]:
        """Write these rows, which are ``known`` to say so; returns those that may say something else."""
        ahead = self._now() + TOLERANCE
        groups: dict[tuple[datetime, int, datetime | None], list[str]] = {}
        for pk, (last, count) in known.items():
            ran = runs[pk]
            # One that lies ahead of the time is of a clock that was wrong.
            if last is None or last < ran.at or last > ahead:
                groups.setdefault((ran.at, max(ran.run_count - count, 0), last), []).append(pk)
        others: list[str] = []
        singles: dict[str, tuple[datetime, int, datetime | None]] = {}
        for (at, more, last), ids in groups.items():
            if len(ids) < _WORTH_A_STATEMENT:
                singles |= dict.fromkeys(ids, (at, more, last))
                continue
            for chunk in _chunks(ids):
                others += self._update(chunk, _stored(at), more, None if last is None else _stored(last))
        for chunk in _chunks(list(singles)):
            ats = _each({pk: singles[pk][0] for pk in chunk})
            lasts = _each({pk: singles[pk][2] for pk in chunk})
            mores = Case(
                *(When(pk=pk, then=Value(singles[pk][1])) for pk in chunk), output_field=PositiveIntegerField()
            )
            others += self._update(chunk, ats, mores, lasts)
        return others

    def _update(self, ids: Sequence[str], at: Any, more: Any, last: Any) -> Sequence[str]:
        as_known = Q(last_run_at__isnull=True) if last is None else Q(last_run_at__isnull=True) | Q(last_run_at=last)
        rows = self._rows.filter(as_known, pk__in=ids, enabled=True)
        written = rows.update(last_run_at=at, total_run_count=F("total_run_count") + more)
        return [] if written == len(ids) else ids

    def _locked(self, ids: Sequence[str]) -> dict[str, tuple[datetime | None, int]]:
        found: dict[str, tuple[datetime | None, int]] = {}
        for chunk in _chunks(ids):
            rows = self._rows.select_for_update().filter(pk__in=chunk, enabled=True).order_by("pk")
            for pk, last, count in rows.values_list("pk", "last_run_at", "total_run_count"):
                found[str(pk)] = (None if last is None else utc(last), count)
        return found

    def _disable_expired(self) -> None:
        """As django-celery-beat does: a row is disabled when it expires."""
        if self.snapshot is None:
            return
        now = self._now()
        expired = [e.id for e in self.snapshot.entries.values() if e.expires is not None and e.expires <= now]
        if expired:
            self._disable(Q(pk__in=expired, expires__lte=_stored(now)))

    def _disable(self, which: Q, **reset: Any) -> None:
        # Both or neither: with only the mark missing nobody would look, and there is nothing left to disable again.
        with transaction.atomic(using=self._alias):
            if self._rows.filter(which, enabled=True).update(enabled=False, last_run_at=None, **reset):
                # All replicas have to know: by their schedule these entries are still on.
                self._changes.update_changed()

    @property
    def _rows(self) -> Any:
        return self._model._default_manager.using(self._alias)  # noqa: SLF001 -- Django's documented way

    @property
    def _alias(self) -> str:
        return str(router.db_for_write(self._model))


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _each(instants: Mapping[str, datetime | None]) -> Case | None:
    """The instant of each row; ``None`` where none has any."""
    lines = [When(pk=pk, then=Value(_stored(at), DateTimeField())) for pk, at in instants.items() if at is not None]
    return Case(*lines, output_field=DateTimeField()) if lines else None


def _stored(instant: datetime) -> datetime:
    """As django-celery-beat stores instants: naive UTC where Django knows no time zones."""
    return instant if settings.USE_TZ else instant.astimezone(UTC).replace(tzinfo=None)
