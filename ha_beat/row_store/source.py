"""Schedule source for the rows of a store."""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import partial
from typing import Any, Protocol

from celery import Celery

from ha_beat.beat_loop import Runtime
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import Duty, Verdict
from ha_beat.row_store.backend import RowStore
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.full_read import PAGE
from ha_beat.row_store.reader import RowReader
from ha_beat.row_store.run_state import RunStateTable
from ha_beat.row_store.static_entries import write_static_entries
from ha_beat.row_store.sync import RowReading, RowSync, RowWriting
from ha_beat.row_store.table import RowTable
from ha_beat.row_store.thread import DatabaseThread
from ha_beat.row_store.writer import RowWriter
from ha_beat.schedule_sources.source import EntryHooks
from ha_beat.schedule_sources.stored_source import POLL_INTERVAL, StoredSource
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow


class RowHooks(EntryHooks, Protocol):
    """Scheduler class of a store as the source uses it."""

    app: Celery
    max_interval: float | None

    def row_store(self) -> RowStore: ...


class RowSource(StoredSource):
    """Entries of the rows as last read.

    Two threads (:mod:`ha_beat.row_store.sync`) read and write the rows. It has more than 15 methods, most of
    which belong to the interface of a schedule source.
    """

    _scheduler: RowHooks

    def __init__(self, scheduler: RowHooks) -> None:
        super().__init__(scheduler)
        self._store: RowStore | None = None
        self._removed: dict[str, int] = {}

    # --- Life cycle

    def start(self, runtime: Runtime) -> None:
        scheduler, now, emit = self._scheduler, runtime.enqueuer.now, runtime.events.emit
        store = self._store = scheduler.row_store()
        reads, writes = (partial(runtime.duties.progressed, duty) for duty in (Duty.READ_SCHEDULE, Duty.WRITE_ROWS))
        reader = RowReader(store.queries, self._make_entry, clock=self._clock, now=now, emit=emit, progress=reads)
        leader_term = partial(getattr, runtime.elector.handle, "term")
        reading = RowReading(reader, term=leader_term, duties=runtime.duties)
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
        self._run(runtime, RowSync(reading, writing, thread))

    def _make_entry(self, model: Any) -> RowEntry:
        """Make the entry of a row."""
        entry: RowEntry = self._row_store.make_entry(model)
        entry.rules = self.rules.of(entry)
        return entry

    def _begin_term(self, term: Term) -> None:
        """Write the changed entries of the settings, and the runs that the previous leader could not write."""
        (runtime, sync), store = self._running, self._row_store
        write_static_entries(
            self._scheduler.app,
            store.static,
            store.database,
            runtime.ledger,
            term,
            began_ms=self._began_ms,
            emit=runtime.events.emit,
            progress=partial(runtime.duties.progressed, Duty.WRITE_ROWS),
        )
        sync.writer.record_missing(runtime.ledger.pages(PAGE))

    @property
    def _row_store(self) -> RowStore:
        if self._store is None:
            raise RuntimeError("the schedule source has not been started")
        return self._store

    # --- Entries

    def _loading(self, ids: Set[str] | None) -> None:
        table: RowTable = self._running[1].table
        if ids is None:
            self._removed = {}
            removed = table.removed()
        else:
            removed = {entry_id: at for entry_id in ids if (at := table.removed_at(entry_id)) is not None}
        self._removed |= {entry_id: at for entry_id, at in removed.items() if at <= self._used[0]}

    def _details(self, entry: RowEntry) -> Mapping[str, Any]:
        return {
            "once": entry.once,
            "expires": entry.expires,
            "resumed": entry.id in self._removed,
            "cleared": entry.run_state[0] is None and entry.run_state[1] > 0,
        }

    def _settled(self, entry_id: str) -> bool:
        """True if the leader works on the rows as last read and has no verdict left to give for this one.

        The writing thread calls it.
        """
        runtime, sync = self._running
        term, enqueuer = runtime.elector.handle.term, runtime.enqueuer
        current = self._used[0] == sync.table.number
        loaded = term is not None and enqueuer.up_to_date(term) and not enqueuer.held_back
        return current and loaded and enqueuer.due_queue.get(entry_id) is None

    # --- One entry

    def armed(self, entry_id: str) -> None:
        number = self._removed.pop(entry_id, None)
        if number is not None:
            self._running[1].table.forget_removed(entry_id, number)

    def finished(self, entry: ScheduledEntry, runs: int) -> None:
        # As in the stores' own schedulers, a one-off row that has not run stays enabled until it expires: it may be
        # edited.
        if entry.once and (runs or entry.celery_entry.expires is None):
            _, sync = self._running
            sync.writer.disable_finished(entry.celery_entry)
            sync.write_soon()

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        row_entry: RowEntry = entry.celery_entry
        if row.verdict is not Verdict.SKIPPED and self.hooks.replaced("reserve"):
            self._scheduler.reserve(row_entry)
        row_entry.last_run_at, row_entry.total_run_count = row.base, row.run_count
        if not entry.once:
            # The row of a one-off entry is only disabled: its task may have set its next run by then.
            self._running[1].writer.record(entry.id, row)
