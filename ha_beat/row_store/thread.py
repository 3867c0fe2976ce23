"""Base of the threads that read and write the rows: a thread with separate connections that does one duty in turns."""

from __future__ import annotations

from celery import Celery

from ha_beat.beat_loop import Runtime
from ha_beat.clock import Clock
from ha_beat.reasons import Duty, DutyFault
from ha_beat.row_store.backend import Database, DatabaseFault
from ha_beat.row_store.limits import first_line
from ha_beat.row_store.updates import TableLocked
from ha_beat.store.lease import Term
from ha_beat.threads import RepeatingThread

_DUTY_FAULTS = {DatabaseFault.TIMED_OUT: DutyFault.TIMED_OUT, DatabaseFault.UNREACHABLE: DutyFault.UNREACHABLE}


class DatabaseThread(RepeatingThread):
    """Thread of one duty. A subclass defines the work of a turn."""

    name: str
    duty: Duty

    def __init__(self, app: Celery, database: Database, runtime: Runtime, clock: Clock, interval: float) -> None:
        """Create the thread.

        Args:
            app: Made current in the thread.
            database: Gives the thread its connections.
            runtime: The replica. Its duties receive each failed turn, its events each restart of the thread.
            clock: Measures the time between restarts of the thread.
            interval: Seconds between turns.
        """
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
