"""Thread that keeps the schedule and django-celery-beat's tables in step.

Beat's main loop never waits for the database: it works from the last :class:`~ha_beat.django.row_reader.Snapshot` and
queues updates with the :class:`~ha_beat.django.row_writer.RowWriter`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from celery import Celery
from django.db import InterfaceError, close_old_connections, connections
from django.db.utils import Error as AnyDatabaseError

from ha_beat.django.row_reader import RowReader, precompute_next
from ha_beat.django.row_writer import RowWriter
from ha_beat.duties import Duties
from ha_beat.errors import StoreError
from ha_beat.exception_text import exception_line
from ha_beat.reasons import Duty, DutyFault
from ha_beat.store.lease import Term

logger = logging.getLogger("ha_beat")

#: Seconds between checks for changes, and between writes of the rows.
POLL_INTERVAL = 1.0

#: Seconds without a completed turn after which the schedule counts as unread.
READ_WITHIN = 10.0

#: Errors of a database that is unreachable or not migrated.
_DATABASE_ERRORS = (AnyDatabaseError, InterfaceError, OSError)


class RowSync:
    """Thread that reads and writes the rows. Start it after any fork.

    Half of its attributes are the parts and callbacks that it is constructed from.
    """

    def __init__(
        self,
        *,
        app: Celery,
        reader: RowReader,
        writer: RowWriter,
        term: Callable[[], Term | None],
        begin_term: Callable[[Term], None],
        duties: Duties,
        position: Callable[[str], datetime | None],
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        """Create the thread.

        Args:
            app: Made current in the thread.
            reader: Reads the rows.
            writer: Writes the rows.
            term: Return this replica's term, ``None`` on a standby.
            begin_term: Write to the database what a new term requires. Repeated until it succeeds.
            duties: Receives completions and failures.
            position: Return the cluster's position of an entry.
            poll_interval: Seconds between turns.
        """
        self.reader = reader
        self.writer = writer
        self._app = app
        self._term = term
        self._begin_term = begin_term
        self._duties = duties
        self._position = position
        self._poll_interval = poll_interval
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        #: Set when the process ends: updates are kept for the last write.
        self.closing = False
        #: Nonce of the last term under which the rows were read.
        self.read_in = ""
        self._seen_term = self._begun_term = ""

    def start(self) -> None:
        self._duties.expect(Duty.READ_SCHEDULE, within=READ_WITHIN)
        self._thread = threading.Thread(target=self._run, name="ha_beat-rows", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Start the next turn now."""
        self._wake.set()

    def close(self, seconds: float) -> None:
        """Write the queued updates and end. Wait at most ``seconds``; after that the thread ends with the process."""
        self.closing = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def _run(self) -> None:
        self._app.set_current()
        while not self.closing:
            self._turn()
            self._wake.wait(self._poll_interval)
            self._wake.clear()
        try:
            close_old_connections()
            self.writer.write()
        except _DATABASE_ERRORS as exc:
            logger.warning(
                "The last runs were not written to their rows; the next leader writes them: %s",
                exc,
                extra={"action": "last_runs_not_written", "error": str(exc)},
            )
        connections.close_all()

    def _turn(self) -> None:
        try:
            close_old_connections()
            self._sync()
        except (*_DATABASE_ERRORS, StoreError) as exc:
            detail = exception_line(exc)
            self._duties.failed(Duty.READ_SCHEDULE, DutyFault.UNREACHABLE, detail)
            connections.close_all()  # One that was cut stays unusable.
        except Exception as exc:
            self._duties.raised(Duty.READ_SCHEDULE, exc)
            connections.close_all()
        else:
            self._duties.done(Duty.READ_SCHEDULE)

    def _sync(self) -> None:
        term = self._term()
        if term is None:
            if not self.closing:
                self._stand_by()
            return
        if self._seen_term != term.nonce:
            # Leave the first turn of a term to the main loop, which loads the schedule.
            self._seen_term = term.nonce
            return
        if self.read_in != term.nonce:
            self.reader.read()
            self.read_in = term.nonce
        try:
            if self._begun_term != term.nonce:
                self._begin_term(term)
                self._begun_term = term.nonce
            self.writer.write()
            self.writer.disable_expired()
        finally:
            # An edit takes effect even if the rows can't be written.
            self.reader.read_if_changed()

    def _stand_by(self) -> None:
        self.writer.write_after_term()
        self.reader.read_if_changed()
        precompute_next(self.reader.entries().values(), self._position)
