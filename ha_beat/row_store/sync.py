"""Two threads that keep the schedule and the rows in step: one reads, the other writes.

Beat's main loop never waits for the database: it works from the rows as last read by
:class:`~ha_beat.row_store.reader.RowReader`, and queues updates with :class:`~ha_beat.row_store.writer.RowWriter`.
A write that is slow or blocked does not hold up the reading.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ha_beat import events
from ha_beat.duties import Duties
from ha_beat.reasons import Duty, DutyFault, EntryFault
from ha_beat.row_store.backend import Database
from ha_beat.row_store.limits import first_line
from ha_beat.row_store.reader import RowReader
from ha_beat.row_store.run_state import TableLocked
from ha_beat.row_store.table import RowTable
from ha_beat.row_store.thread import DatabaseThread
from ha_beat.row_store.writer import RowWriter
from ha_beat.schedule_sources.stored_source import LATE_AFTER
from ha_beat.store.lease import Term

logger = logging.getLogger("ha_beat")

#: Rows that are named in one report.
_NAMED = 5


class RowReading:
    """Turns of the reading thread."""

    def __init__(self, reader: RowReader, *, term: Callable[[], Term | None], duties: Duties) -> None:
        """Create the turns of a replica. ``term`` returns its term, ``None`` on a standby."""
        self.reader = reader
        self._term = term
        self._duties = duties
        #: Nonce of the last term under which the rows were read.
        self.read_in = ""
        self._seen_term = self._reading_for = ""
        self._complete_at = 0

    def expect(self) -> None:
        """Report the reading as late from now on, if no turn is completed in time."""
        self._duties.expect(Duty.READ_SCHEDULE, within=LATE_AFTER)

    def turn(self) -> float | None:
        """Read what has changed. Return the seconds until the next turn. Raises the database's errors."""
        pause = self._read(self._term())
        self._duties.done(Duty.READ_SCHEDULE)
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
        if self.reader.complete >= self._complete_at:
            self.read_in = term.nonce
        return pause


class RowWriting:
    """Turns of the writing thread."""

    def __init__(
        self,
        writer: RowWriter,
        reading: RowReading,
        database: Database,
        *,
        term: Callable[[], Term | None],
        begin_term: Callable[[Term], None],
        duties: Duties,
        emit: Callable[[events.Event], None],
    ) -> None:
        """``begin_term`` writes to the database what a new term requires. It is repeated until it succeeds."""
        self.writer = writer
        self._reading = reading
        self._database = database
        self._term = term
        self._begin_term = begin_term
        self._duties = duties
        self._emit = emit
        #: Nonce of the last term for which ``begin_term`` was done.
        self.begun_in = ""
        self._seen_term = ""
        self._reported: dict[str, str] = {}

    def turn(self) -> None:
        """Write what is queued. Raises the database's errors."""
        term = self._term()
        if term is None:
            self._duties.suspend(Duty.WRITE_ROWS)
            self.writer.write_after_term()
            return
        self._duties.expect(Duty.WRITE_ROWS, within=LATE_AFTER)
        if self._seen_term != term.nonce:
            # As the reading does.
            self._seen_term = term.nonce
            return
        try:
            # Only once the rows are known as they are under this term.
            if self.begun_in != term.nonce and self._reading.read_in == term.nonce:
                self._begin_term(term)
                self.begun_in = term.nonce
        finally:
            self._write()
        self._report()

    def last_turn(self) -> None:
        """Write what is queued as the process ends. Logs the database's errors."""
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

    def _write(self) -> None:
        try:
            self.writer.write()
        finally:
            self.writer.disable_expired()

    def _report(self) -> None:
        """Report the rows that can't be written, or that all were."""
        faults = self.writer.faults()
        for name, detail in faults.items():
            if self._reported.get(name) != detail:
                self._emit(events.EntryFailed(name, EntryFault.ROW_NOT_WRITTEN, detail))
        self._reported = faults
        if not faults:
            self._duties.done(Duty.WRITE_ROWS)
            return
        named = [f"{name}: {detail}" for name, detail in list(faults.items())[:_NAMED]]
        more = len(faults) - len(named)
        detail = "; ".join(named) + (f"; and {more} more" if more else "")
        self._duties.failed(Duty.WRITE_ROWS, DutyFault.PARTIAL, detail)


class RowSync:
    """The two threads of a replica."""

    def __init__(self, reading: RowReading, writing: RowWriting, thread: Callable[..., DatabaseThread]) -> None:
        """``thread`` makes a :class:`DatabaseThread` of its name, duty and turns."""
        self.reading = reading
        self.writing = writing
        self._reader = thread("ha_beat-rows-read", Duty.READ_SCHEDULE, self._read)
        self._writer = thread("ha_beat-rows-write", Duty.WRITE_ROWS, self._write, last_turn=writing.last_turn)

    @property
    def table(self) -> RowTable:
        return self.reading.reader.table

    @property
    def complete(self) -> int:
        return self.reading.reader.complete

    @property
    def read_in(self) -> str:
        return self.reading.read_in

    @property
    def writer(self) -> RowWriter:
        return self.writing.writer

    def keep_running(self) -> None:
        """Start the threads, or start them again if they have ended. Must be called after any fork."""
        self.reading.expect()
        self._reader.keep_running()
        self._writer.keep_running()

    def write_soon(self) -> None:
        """Write what is queued without waiting for the next turn."""
        self._writer.wake()

    def stop(self) -> None:
        """Start no further turn: updates are kept for the last write."""
        self._reader.stop()
        self._writer.stop()

    def close(self, seconds: float) -> None:
        """Write the queued updates and end. Wait at most ``seconds``."""
        self._reader.close(0.0)
        self._writer.close(seconds)

    def _read(self) -> float | None:
        before = self.reading.read_in
        pause = self.reading.turn()
        if self.reading.read_in != before:
            # The writing of a new term waits for this.
            self._writer.wake()
        return pause

    def _write(self) -> None:
        before = self.writing.begun_in
        self.writing.turn()
        if self.writing.begun_in != before:
            # There may be new rows.
            self._reader.wake()
