"""Schedule source for django-celery-beat."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol
from weakref import WeakValueDictionary

from celery import Celery
from django.db.models import QuerySet

from ha_beat.beat_loop import Runtime
from ha_beat.django import static_entries
from ha_beat.django.entries import RowEntry
from ha_beat.django.instants import Cached
from ha_beat.django.row_reader import RowReader
from ha_beat.django.row_sync import POLL_INTERVAL, RowSync
from ha_beat.django.row_writer import CLOCK_TOLERANCE, RowWriter, Run
from ha_beat.events import Event, TermEnded
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.reconcile import Absence
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule_source import EntryHooks, EntrySource, default_misfire
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

logger = logging.getLogger("ha_beat")

#: Longest time that :meth:`DatabaseSource.join` waits for the last runs to be written to their rows, in seconds.
_LAST_WRITE = 3.0


class RowHooks(EntryHooks, Protocol):
    """Scheduler class of django-celery-beat as the source uses it."""

    app: Celery
    max_interval: float | None
    Entry: type[RowEntry]
    Model: Any
    Changes: Any

    def enabled_models_qs(self) -> QuerySet[Any]: ...


class DatabaseSource(EntrySource):
    """Entries of the rows as last read. A thread per replica (:mod:`ha_beat.django.row_sync`) reads and writes them."""

    _scheduler: RowHooks

    def __init__(self, scheduler: RowHooks) -> None:
        super().__init__(scheduler)
        self._runtime: Runtime | None = None
        self._rows: RowSync | None = None
        self._began_ms = round(self._clock.wall() * 1000)
        self._seen = (0, False)
        self._certain = False
        self._instants: WeakValueDictionary[tuple[str, datetime | None], Any] = WeakValueDictionary()
        self._departing: dict[str, int] = {}

    @property
    def entries(self) -> dict[str, RowEntry]:
        """The entries as last read, by name."""
        snapshot = self._rows.reader.snapshot if self._rows else None
        return dict(snapshot.by_name) if snapshot else {}

    # --- Life cycle

    def start(self, runtime: Runtime) -> None:
        self._runtime, self._rows = runtime, self._open(runtime)
        self._rows.start()

    def ready(self) -> bool:
        """True once the rows have been read. Another replica may be able to read them."""
        return self._rows is not None and self._rows.reader.snapshot is not None

    def stop(self) -> None:
        if self._rows is not None:
            self._rows.closing = True

    def join(self) -> None:
        if self._rows is not None:
            self._rows.close(_LAST_WRITE)

    def _open(self, runtime: Runtime) -> RowSync:
        def begin_term(term: Term) -> None:
            self._write_static(runtime, term)
            self._write_behind(runtime)

        now = runtime.enqueuer.now
        reader = RowReader(
            changes=self._scheduler.Changes,
            enabled=self._scheduler.enabled_models_qs,
            make_entry=self._make_entry,
            clock=self._clock,
            now=now,
            emit=runtime.events.emit,
        )
        rows = RowSync(
            app=self._scheduler.app,
            reader=reader,
            writer=RowWriter(
                self._scheduler.Model,
                self._scheduler.Changes,
                now,
                lambda: reader.snapshot.by_id if reader.snapshot else {},
            ),
            clock=self._clock,
            term=lambda: runtime.elector.handle.term,
            begin_term=begin_term,
            emit=runtime.events.emit,
            position=runtime.shadow.position,
            poll_interval=min(POLL_INTERVAL, self._scheduler.max_interval or POLL_INTERVAL),
        )

        def write_the_last(event: Event) -> None:
            if isinstance(event, TermEnded):
                rows.wake()

        runtime.events.subscribe(write_the_last)
        return rows

    def _make_entry(self, model: Any) -> RowEntry:
        """An entry of the row, shared with nobody; its instants are shared with rows that have the same."""
        entry: RowEntry = self._scheduler.Entry(model, app=self._scheduler.app)
        entry.rules(default_misfire(self._scheduler.ha_settings), self._scheduler.ha_settings.uncertain)
        same = (entry.signature, entry.expires)
        entry.instants = Cached(self._instants.setdefault(same, entry.instants.inner))
        return entry

    def _write_static(self, runtime: Runtime, term: Term) -> None:
        names = {name: f"static:{name}" for name in static_entries.static_entries(self._scheduler.app)}
        notes = runtime.ledger.notes(list(names.values()))
        marks = {name: notes[note] for name, note in names.items() if note in notes}
        written = static_entries.write(
            self._scheduler.app, self._scheduler.Model, marks, self._began_ms, runtime.events.emit
        )
        if written:
            runtime.ledger.note(term, {names[name]: mark for name, mark in written.items()})

    def _write_behind(self, runtime: Runtime) -> None:
        """Bring up to date what the last leader could not write any more."""
        rows = self._rows
        if rows is None or rows.reader.snapshot is None:
            return
        known = runtime.ledger.read()
        for entry in rows.reader.snapshot.by_id.values():
            row = LedgerRow.parse(known.get(entry.id, ""))
            if row is None or row.verdict not in {"enqueued", "uncertain"} or row.run_count <= entry.row_run_count:
                continue
            rows.writer.record_run(entry.id, Run(row.base, row.run_count))

    # --- Entries

    def changed(self, term: Term, *, held_back: bool) -> bool:
        rows = self._rows
        if rows is None or rows.reader.snapshot is None:
            return False
        seen_number, certain = self._seen
        if rows.reader.snapshot.number != seen_number:
            return True
        return held_back and not certain and rows.read_in == term.nonce

    def load(self) -> Iterable[ScheduledEntry]:
        rows, runtime = self._rows, self._runtime
        if rows is None or rows.reader.snapshot is None or runtime is None:
            return
        snapshot = rows.reader.snapshot
        self._departing = {entry: at for entry, at in rows.reader.removed().items() if at <= snapshot.number}
        self._seen = (snapshot.number, self._certain)
        default = default_misfire(self._scheduler.ha_settings)
        now = runtime.enqueuer.now()
        for name, entry in snapshot.by_name.items():
            try:
                if entry.expires is None or entry.expires > now:
                    yield self._scheduled_row(entry, default, now)
            except Exception:
                logger.exception("Entry %s is left out", name, extra={"action": "entry_left_out", "entry": name})

    def _scheduled_row(self, entry: RowEntry, default: MisfireRules, now: datetime) -> ScheduledEntry:
        stored = entry.stored_last_run_at
        rules = entry.rules(default, self._scheduler.ha_settings.uncertain)
        return ScheduledEntry(
            id=entry.id,
            celery_entry=entry,
            recurrence=entry.instants,
            misfire=rules.misfire,
            uncertain=rules.uncertain,
            signature=entry.signature,
            last_run=NEVER if stored is None or stored > now + CLOCK_TOLERANCE else stored,
            name=entry.name,
            run_count=entry.row_run_count,
            once=entry.once,
            since=entry.since,
            resumed=entry.id in self._departing,
            cleared=entry.row_last_run_at is None and entry.row_run_count > 0,
        )

    def absence(self, term: Term) -> Absence | None:
        rows = self._rows
        self._certain = rows is not None and rows.read_in == term.nonce
        return Absence(self._certain)

    def armed(self, entry_id: str) -> None:
        number = self._departing.pop(entry_id, None)
        if number is not None and self._rows is not None:
            self._rows.reader.forget_removed(entry_id, number)

    def finished(self, entry: ScheduledEntry, runs: int) -> None:
        # One that expires before its time stays on until then, as django-celery-beat has it: either may be edited.
        if entry.once and self._rows is not None and (runs or entry.celery_entry.expires is None):
            self._rows.writer.disable_finished(entry.id)
            self._rows.wake()

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        row_entry: RowEntry = entry.celery_entry
        row_entry.last_run_at, row_entry.total_run_count = row.base, row.run_count
        if row.verdict in {"enqueued", "uncertain"} and self._rows is not None:
            self._rows.writer.record_run(entry.id, Run(row.base, row.run_count))
