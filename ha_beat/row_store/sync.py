"""Two threads that keep the entries and the rows in step: one reads, the other writes.

Beat's main loop never waits for the database: it works from the rows as last read by
:class:`~ha_beat.row_store.reader.RowReader`, and queues updates with :class:`~ha_beat.row_store.writer.RowWriter`.
A slow or blocked write does not delay the reading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import Celery

from ha_beat import events
from ha_beat.beat_loop import Runtime
from ha_beat.clock import Clock
from ha_beat.reasons import Duty, DutyFault, EntryFault
from ha_beat.row_store.backend import Database, DatabaseFault, RowStore
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.limits import first_line
from ha_beat.row_store.reader import RowReader
from ha_beat.row_store.table import RowTable
from ha_beat.row_store.updates import RowUpdates, TableLocked
from ha_beat.row_store.writer import RowWriter
from ha_beat.schedule_sources.stored_source import LATE_AFTER, POLL_INTERVAL
from ha_beat.store.lease import Term
from ha_beat.threads import RepeatingThread

logger = logging.getLogger("ha_beat")

#: Rows that are named in one report.
_NAMED = 5

_DUTY_FAULTS = {DatabaseFault.TIMED_OUT: DutyFault.TIMED_OUT, DatabaseFault.UNREACHABLE: DutyFault.UNREACHABLE}


class DatabaseThread(RepeatingThread):
    """Thread of one duty. A subclass defines the work of a turn."""

    name: str
    duty: Duty

    def __init__(self, app: Celery, database: Database, runtime: Runtime, clock: Clock, interval: float) -> None:
        """``app`` is made current in the thread. ``interval`` is in seconds, between two turns."""
        super().__init__(name=self.name, interval=interval, clock=clock, emit=runtime.events.emit)
        self._app = app
        self._database = database
        self._runtime = runtime
        self._duties = runtime.duties

    @property
    def term(self) -> Term | None:
        """Return the replica's term, ``None`` on a standby."""
        return self._runtime.elector.handle.term

    def work(self) -> float | None:
        """Do the duty once. Return the seconds until the next turn, ``None`` for the interval. May raise anything."""
        raise NotImplementedError

    def begin(self) -> None:
        self._app.set_current()
        self._database.open()

    def end(self) -> None:
        self._database.close()

    def turn(self) -> float | None:
        """Do the duty. Report an exception, and close the connections, because one that was cut stays unusable."""
        try:
            self._database.refresh()
            return self.work()
        except Exception as exc:
            fault = DatabaseFault.TIMED_OUT if isinstance(exc, TableLocked) else self._database.fault(exc)
            if fault is None:
                self._duties.raised(self.duty, exc)
            else:
                self._duties.failed(self.duty, _DUTY_FAULTS.get(fault, DutyFault.REFUSED), first_line(exc))
            self._database.close()
        return None


class ReadingThread(DatabaseThread):
    """Thread that reads the rows."""

    name = "ha_beat-rows-read"
    duty = Duty.READ_SCHEDULE

    def __init__(self, reader: RowReader, on_term_read: Callable[[], None], *args: Any) -> None:
        """``on_term_read`` is called once all rows have been read in a term. ``args`` are those of the base class."""
        super().__init__(*args)
        self.reader = reader
        self._on_term_read = on_term_read
        #: Nonce of the last term in which all rows were read.
        self.read_in = ""
        self._seen_term = self._reading_for = ""
        self._complete_at = 0

    def keep_running(self) -> None:
        self._duties.expect(self.duty, within=LATE_AFTER)
        super().keep_running()

    def work(self) -> float | None:
        """Read the changes, and all rows when a term begins."""
        pause = self._read(self.term)
        self._duties.done(self.duty)
        return pause

    def _read(self, term: Term | None) -> float | None:
        if term is None:
            return self.reader.turn()
        if self._seen_term != term.nonce:
            # Leave the first turn of a term to the main loop, which loads the schedule.
            self._seen_term = term.nonce
            return None
        if self._reading_for != term.nonce:
            self._reading_for, self._complete_at = term.nonce, self.reader.begin_full_read()
        pause = self.reader.turn()
        if self.read_in != term.nonce and self.reader.complete_reads >= self._complete_at:
            self.read_in = term.nonce
            self._on_term_read()
        return pause


class WritingThread(DatabaseThread):
    """Thread that writes to the rows, on a leader."""

    name = "ha_beat-rows-write"
    duty = Duty.WRITE_ROWS

    def __init__(
        self, writer: RowWriter, reading: ReadingThread, begin_term: Callable[[Term], None], *args: Any
    ) -> None:
        """``begin_term`` writes what a new term requires. It is repeated until it succeeds.

        ``args`` are those of the base class.
        """
        super().__init__(*args)
        self.writer = writer
        self._reading = reading
        self._begin_term = begin_term
        #: Nonce of the last term for which ``begin_term`` succeeded.
        self._begun_in = ""
        self._seen_term = ""
        self._reported: dict[str, str] = {}

    def work(self) -> None:
        """Write what is queued."""
        term = self.term
        if term is None:
            self._duties.suspend(self.duty)
            self.writer.write_after_term()
            return
        self._duties.expect(self.duty, within=LATE_AFTER)
        if self._seen_term != term.nonce:
            # Leave the first turn of a term to the main loop, as the reading thread does.
            self._seen_term = term.nonce
            return
        try:
            # Both writes depend on the rows as they are in this term.
            if self._begun_in != term.nonce and self._reading.read_in == term.nonce:
                self._begin_term(term)
                self._begun_in = term.nonce
                # There may be new rows.
                self._reading.wake()
        finally:
            try:
                self.writer.write()
            finally:
                self.writer.disable_expired()
        self._report()

    def end(self) -> None:
        """Write what is queued as the process ends. Log the database's errors."""
        try:
            self._database.refresh()
            self.writer.write()
        except Exception as exc:
            if not isinstance(exc, TableLocked) and self._database.fault(exc) is None:
                raise
            logger.warning(
                "The last runs were not written to their rows; the next leader writes them: %s",
                first_line(exc),
                extra={"action": "last_runs_not_written", "error": first_line(exc)},
            )
        super().end()

    def _report(self) -> None:
        """Report the rows that can't be written, or that all were written."""
        errors = self.writer.errors()
        for name, detail in errors.items():
            if self._reported.get(name) != detail:
                self._runtime.events.emit(events.EntryFailed(name, EntryFault.ROW_NOT_WRITTEN, detail))
        self._reported = errors
        if not errors:
            self._duties.done(self.duty)
            return
        named = [f"{name}: {detail}" for name, detail in list(errors.items())[:_NAMED]]
        more = len(errors) - len(named)
        detail = "; ".join(named) + (f"; and {more} more" if more else "")
        self._duties.failed(self.duty, DutyFault.PARTIAL, detail)


class RowSync:
    """Reader and writer of a replica, each with its thread."""

    def __init__(
        self,
        store: RowStore,
        runtime: Runtime,
        app: Celery,
        clock: Clock,
        *,
        make_entry: Callable[[Any], RowEntry],
        begin_term: Callable[[Term], None],
        has_all_verdicts: Callable[[str], bool],
        interval: float = POLL_INTERVAL,
    ) -> None:
        """Create the threads without starting them. ``begin_term`` is that of :class:`WritingThread`."""
        now, common = runtime.enqueuer.now, (app, store.database, runtime, clock, interval)
        reads, writes = (partial(runtime.duties.progressed, duty) for duty in (Duty.READ_SCHEDULE, Duty.WRITE_ROWS))
        reader = RowReader(store.queries, make_entry, clock=clock, now=now, emit=runtime.events.emit, progress=reads)
        updates = RowUpdates(store.statements, store.database, now)
        self.table: RowTable = reader.table
        self.writer = RowWriter(updates, reader.table, clock, has_all_verdicts, writes)
        self.reading = ReadingThread(reader, self.write_soon, *common)
        self.writing = WritingThread(self.writer, self.reading, begin_term, *common)

    @property
    def complete_reads(self) -> int:
        return self.reading.reader.complete_reads

    @property
    def read_in(self) -> str:
        return self.reading.read_in

    def keep_running(self) -> None:
        """Start the threads, or start them again if they have ended. Must be called after any fork."""
        self.reading.keep_running()
        self.writing.keep_running()

    def write_soon(self) -> None:
        """Write what is queued without waiting for the next turn."""
        self.writing.wake()

    def stop(self) -> None:
        """Start no further turn. Queued updates are kept for the last write."""
        self.reading.stop()
        self.writing.stop()

    def close(self, seconds: float) -> None:
        """Write the queued updates and end the threads. Wait at most ``seconds``."""
        self.reading.close(0.0)
        self.writing.close(seconds)
