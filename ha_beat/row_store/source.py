"""Schedule source for the rows of a store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Set
from datetime import datetime
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

from celery import Celery

from ha_beat.beat_loop import Runtime
from ha_beat.events import Event, TermEnded
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.forecast import Outline
from ha_beat.leader.planner import ScheduleChange
from ha_beat.leader.reconcile import Absence
from ha_beat.reasons import Duty, Verdict
from ha_beat.row_store.backend import RowStore
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.instants import Cached
from ha_beat.row_store.next_instants import NextInstants
from ha_beat.row_store.reader import RowReader
from ha_beat.row_store.run_state import RunStateTable
from ha_beat.row_store.static_entries import write_static_entries
from ha_beat.row_store.sync import POLL_INTERVAL, RowReading, RowSync, RowWriting
from ha_beat.row_store.thread import DatabaseThread
from ha_beat.row_store.writer import RowWriter
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule_source import CLOCK_TOLERANCE, EntryHooks, EntrySource
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

logger = logging.getLogger("ha_beat")

#: Longest time that :meth:`RowSource.join` waits for the last runs to be written to their rows, in seconds.
_LAST_WRITE = 3.0


class RowHooks(EntryHooks, Protocol):
    """Scheduler class of a store as the source uses it."""

    app: Celery
    max_interval: float | None

    def row_store(self) -> RowStore: ...


class RowSource(EntrySource):
    """Entries of the rows as last read.

    Two threads (:mod:`ha_beat.row_store.sync`) read and write the rows. It has more than 15 methods, most of
    which belong to the interface of a schedule source.
    """

    _scheduler: RowHooks

    def __init__(self, scheduler: RowHooks) -> None:
        super().__init__(scheduler)
        self._runtime: Runtime | None = None
        self._sync: RowSync | None = None
        self._store: RowStore | None = None
        self._began_ms = round(self._clock.wall() * 1000)
        # Number of the rows that the leader uses, and whether they were read in the leader's term.
        self._used = (0, False)
        #: Number of the rows as last found to be changed.
        self._found = 0
        self._read_in_term = False
        self._instants: WeakValueDictionary[tuple[str, datetime | None], Any] = WeakValueDictionary()
        self._removed: dict[str, int] = {}

    @property
    def entries(self) -> dict[str, Any]:
        """Return the entries as last read, by name."""
        rows = self._sync.reading.reader.table.entries.copy() if self._sync else {}
        return {entry.name: entry for entry in rows.values()}

    # --- Life cycle

    def start(self, runtime: Runtime) -> None:
        scheduler, now, emit = self._scheduler, runtime.enqueuer.now, runtime.events.emit
        store = self._store = scheduler.row_store()
        reads, writes = (partial(runtime.duties.progressed, duty) for duty in (Duty.READ_SCHEDULE, Duty.WRITE_ROWS))
        reader = RowReader(store.queries, self._make_entry, clock=self._clock, now=now, emit=emit, progress=reads)
        leader_term = partial(getattr, runtime.elector.handle, "term")
        next_instants = NextInstants(reader.table, runtime.shadow.position, self._clock)
        reading = RowReading(reader, term=leader_term, duties=runtime.duties, stand_by=next_instants.turn)
        table = RunStateTable(store.statements, store.database, now)
        writing = RowWriting(
            RowWriter(table, reader.table, self._clock, self._settled, writes),
            reading,
            store.database,
            term=leader_term,
            begin_term=self._begin_term,
            duties=runtime.duties,
            emit=emit,
        )
        thread = partial(
            DatabaseThread,
            app=scheduler.app,
            database=store.database,
            duties=runtime.duties,
            interval=min(POLL_INTERVAL, scheduler.max_interval or POLL_INTERVAL),
            clock=self._clock,
            emit=emit,
        )
        sync = RowSync(reading, writing, thread)

        def write_last_runs(event: Event) -> None:
            if isinstance(event, TermEnded):
                sync.write_soon()

        runtime.events.subscribe(write_last_runs)
        self._runtime, self._sync = runtime, sync

    def keep_running(self) -> None:
        if self._sync is not None:
            self._sync.keep_running()

    def ready(self) -> bool:
        """True once the rows have been read. Another replica may be able to read them."""
        return self._sync is not None and self._sync.reading.reader.complete > 0

    def stop(self) -> None:
        if self._sync is not None:
            self._sync.stop()

    def join(self) -> None:
        if self._sync is not None:
            self._sync.close(_LAST_WRITE)

    def _make_entry(self, model: Any) -> RowEntry:
        """Make the entry of a row. Rows with the same schedule share its instants, with a cache for each row."""
        entry: RowEntry = self._started[2].make_entry(model)
        entry.rules = self.rules_of(entry)
        key = (entry.signature, entry.expires)
        entry.instants = Cached(self._instants.setdefault(key, entry.instants.inner))
        return entry

    def _begin_term(self, term: Term) -> None:
        """Write the changed entries of the settings, and the runs that the previous leader could not write."""
        runtime, sync, store = self._started
        write_static_entries(
            self._scheduler.app,
            store.static,
            store.database,
            runtime.ledger,
            term,
            began_ms=self._began_ms,
            emit=runtime.events.emit,
        )
        sync.writing.writer.record_missing(runtime.ledger.read())

    @property
    def _started(self) -> tuple[Runtime, RowSync, RowStore]:
        if self._runtime is None or self._sync is None or self._store is None:
            raise RuntimeError("the schedule source has not been started")
        return self._runtime, self._sync, self._store

    # --- Entries

    def changed(self, term: Term, *, held_back: bool) -> ScheduleChange | None:
        """Return the entries that differ from those in use; all if some wait for a read in this term that is done."""
        if not self.ready():
            return None
        reading, (number, read_in_term) = self._started[1].reading, self._used
        if held_back and not read_in_term and reading.read_in == term.nonce:
            return ScheduleChange()
        self._found = reading.reader.table.number
        return ScheduleChange(reading.reader.table.changed_since(number)) if self._found != number else None

    def outlines(self) -> Iterable[Outline]:
        entries = self._sync.reading.reader.table.entries.copy() if self._sync else {}
        for entry in entries.values():
            recurrence = None if self.asks(entry) else entry.instants
            yield entry.id, recurrence, entry.stored_last_run_at or NEVER

    def load(self, ids: Set[str] | None = None) -> Iterable[ScheduledEntry]:
        runtime, sync, _ = self._started
        table, now = sync.reading.reader.table, runtime.enqueuer.now()
        if ids is None:
            self._used = (table.number, self._read_in_term)
            removed, entries = table.removed(), list(table.entries.copy().values())
            self._removed = {}
            self.detect_hooks()
        else:
            self._used = (self._found, self._used[1])
            removed = {entry_id: at for entry_id in ids if (at := table.removed_at(entry_id)) is not None}
            entries = [entry for entry_id in ids if (entry := table.entries.get(entry_id)) is not None]
        self._removed |= {entry_id: at for entry_id, at in removed.items() if at <= self._used[0]}
        for entry in entries:
            try:
                yield self._scheduled_row(entry, now)
            except Exception:
                extra = {"action": "entry_left_out", "entry": entry.name}
                logger.exception("Entry %s is left out", entry.name, extra=extra)

    def _scheduled_row(self, entry: RowEntry, now: datetime) -> ScheduledEntry:
        stored = entry.stored_last_run_at
        return ScheduledEntry(
            id=entry.id,
            celery_entry=entry,
            recurrence=None if self.asks(entry) else entry.instants,
            signature=entry.signature,
            last_run=NEVER if stored is None or stored > now + CLOCK_TOLERANCE else stored,
            name=entry.name,
            run_count=entry.run_state[1],
            once=entry.once,
            expires=entry.expires,
            since=entry.since,
            resumed=entry.id in self._removed,
            cleared=entry.run_state[0] is None and entry.run_state[1] > 0,
            **entry.rules.as_fields(),
        )

    def absence(self, term: Term) -> Absence | None:
        """Return a certain absence once the rows have been read in this term."""
        _, sync, _ = self._started
        self._read_in_term = sync.reading.read_in == term.nonce
        return Absence(self._read_in_term)

    def _settled(self, entry_id: str) -> bool:
        """True if the leader works on the rows as last read and has no verdict left to give for this one.

        The writing thread calls it.
        """
        runtime, sync, _ = self._started
        term, enqueuer = runtime.elector.handle.term, runtime.enqueuer
        current = self._used[0] == sync.reading.reader.table.number
        loaded = term is not None and enqueuer.up_to_date(term) and not enqueuer.held_back
        return current and loaded and enqueuer.due_queue.get(entry_id) is None

    # --- One entry

    def armed(self, entry_id: str) -> None:
        number = self._removed.pop(entry_id, None)
        if number is not None:
            self._started[1].reading.reader.table.forget_removed(entry_id, number)

    def finished(self, entry: ScheduledEntry, runs: int) -> None:
        # As in the stores' own schedulers, a one-off row that has not run stays enabled until it expires: it may be
        # edited.
        if entry.once and (runs or entry.celery_entry.expires is None):
            _, sync, _ = self._started
            sync.writing.writer.disable_finished(entry.celery_entry)
            sync.write_soon()

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        row_entry: RowEntry = entry.celery_entry
        if row.verdict is not Verdict.SKIPPED and self.hooks.replaced("reserve"):
            self._scheduler.reserve(row_entry)
        row_entry.last_run_at, row_entry.total_run_count = row.base, row.run_count
        if not entry.once:
            # The row of a one-off entry is only disabled: its task may have set its next run by then.
            self._started[1].writing.writer.record(entry.id, row)
