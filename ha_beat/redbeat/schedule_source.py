"""Schedule source for redbeat's entries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from celery import Celery

from ha_beat import events
from ha_beat.beat_loop import Runtime
from ha_beat.clock import Clock
from ha_beat.errors import StoreError
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import Duty
from ha_beat.redbeat.connection import connect, keys_of
from ha_beat.redbeat.entries import EntryTable, StoredEntry
from ha_beat.redbeat.invalidations import Invalidations
from ha_beat.redbeat.reader import EntryReader
from ha_beat.redbeat.run_writer import RunWriter
from ha_beat.redbeat.static_entries import StaticEntries
from ha_beat.redbeat.store import Record, RedBeatStore
from ha_beat.redbeat.writer import EntryWriter
from ha_beat.schedule_sources.stored_source import LATE_AFTER, POLL_INTERVAL, StoredSource
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from ha_beat.threads import RepeatingThread

logger = logging.getLogger("ha_beat")


class RedBeatSync(RepeatingThread):
    """Thread that keeps the table and redbeat's Redis in step. The main loop never waits for that Redis."""

    def __init__(
        self, runtime: Runtime, reader: EntryReader, runs: RunWriter, entries: EntryWriter, app: Celery, clock: Clock
    ) -> None:
        super().__init__(name="ha_beat-redbeat", interval=POLL_INTERVAL, clock=clock, emit=runtime.events.emit)
        self._runtime = runtime
        self.reader = reader
        self.runs = runs
        self._entries = entries
        self._app = app
        #: Nonce of the last term in which all entries were read, and of the last one whose mark was set.
        self.read_in = self._begun_in = ""
        self._reading_for = ""
        self._lock_ms = -2

    @property
    def table(self) -> EntryTable:
        return self.reader.table

    @property
    def complete_reads(self) -> int:
        return self.reader.complete_reads

    def keep_running(self) -> None:
        self._runtime.duties.expect(Duty.READ_SCHEDULE, within=LATE_AFTER)
        super().keep_running()

    def write_soon(self) -> None:
        self.wake()

    def begin(self) -> None:
        self._app.set_current()

    def end(self) -> None:
        try:
            self.runs.write()
        except StoreError as exc:
            extra = {"action": "last_runs_not_written", "error": str(exc)}
            logger.warning("The last runs were not written; the next leader writes them: %s", exc, extra=extra)

    def turn(self) -> None:
        """Read and write once. Report each failure."""
        term, duties = self._runtime.elector.handle.term, self._runtime.duties
        read = self._do(Duty.READ_SCHEDULE, lambda: self._read(term))
        if term is None:
            duties.suspend(Duty.WRITE_ROWS)
            with suppress(Exception):  # The runs of an earlier term are tried again.
                self.runs.write()
        elif read:
            duties.expect(Duty.WRITE_ROWS, within=LATE_AFTER)
            self._do(Duty.WRITE_ROWS, lambda: self._write(term))

    def _do(self, duty: Duty, work: Callable[[], None]) -> bool:
        """Do the work of a duty and report its success or failure. Return False if it failed."""
        try:
            work()
        except Exception as exc:
            self._runtime.duties.raised(duty, exc)
            return False
        self._runtime.duties.done(duty)
        return True

    def _read(self, term: Term | None) -> None:
        if term is not None and self._reading_for != term.nonce:
            self._reading_for = term.nonce
            self.reader.begin_full_read()
        self.reader.turn()
        if term is not None:
            self.read_in = term.nonce

    def _write(self, term: Term) -> None:
        reader, entries = self.reader, self._entries
        if reader.lost:
            entries.restore(term, reader)
        if self._begun_in != term.nonce and not reader.lost and entries.begin_term(term, reader):
            self.runs.record_missing(self._runtime.ledger.read())
            self._begun_in = term.nonce
        if reader.changed:
            entries.note_change(term, reader)
            reader.changed = False
        self.runs.write()
        held, before, self._lock_ms = reader.lock_ms, self._lock_ms, reader.lock_ms
        if held != -2 and (before == -2 or held > before):
            self._runtime.events.emit(events.OtherSchedulerSeen(held > before > -2, max(held, 0) / 1000))


class RedBeatSource(StoredSource):
    """Entries of redbeat's Redis as last read."""

    stock = ("celery.beat", "redbeat.schedulers")

    def start(self, runtime: Runtime) -> None:
        app, emit = self._scheduler.app, runtime.events.emit
        keys = keys_of(app)
        connection = connect(app, self._scheduler.ha_settings.command_timeout)
        store, table = RedBeatStore(connection, keys), EntryTable(keys.prefix, self._make_entry, emit)
        changes = Invalidations(connection.listener, keys.prefix) if connection.listener is not None else None
        reads = partial(runtime.duties.progressed, Duty.READ_SCHEDULE)
        reader = EntryReader(store, table, changes, self._clock, reads)
        now, statics = runtime.enqueuer.now, StaticEntries(app, self._make_entry, emit)
        entries = EntryWriter(store, table, statics, now=now, emit=emit, began_ms=self._began_ms)
        self._run(runtime, RedBeatSync(runtime, reader, RunWriter(store, table, now), entries, app, self._clock))

    def _make_entry(self, entry_id: str, record: Record) -> StoredEntry | None:
        entry = StoredEntry.of(entry_id, record, self._scheduler.app)
        if entry is not None:
            entry.rules = self.rules.of(entry)
        return entry

    def _details(self, entry: StoredEntry) -> Mapping[str, Any]:
        return {"rescheduled": entry.since}

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        super().recorded(entry, row)
        self._running[1].runs.queue_run(entry.id, row)
