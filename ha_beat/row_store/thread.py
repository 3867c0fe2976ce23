"""Thread with separate connections to the database, which does one duty in turns."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.reasons import Duty, DutyFault
from ha_beat.row_store.backend import Database, DatabaseFault
from ha_beat.row_store.limits import first_line
from ha_beat.row_store.run_state import TableLocked
from ha_beat.threads import RepeatingThread

_DUTY_FAULTS = {DatabaseFault.TIMED_OUT: DutyFault.TIMED_OUT, DatabaseFault.UNREACHABLE: DutyFault.UNREACHABLE}


class DatabaseThread(RepeatingThread):
    """Thread of one duty."""

    def __init__(
        self,
        name: str,
        duty: Duty,
        turn: Callable[[], float | None],
        *,
        app: Celery,
        database: Database,
        duties: Duties,
        interval: float,
        clock: Clock,
        emit: Callable[[events.Event], None],
        last_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the thread.

        Args:
            name: Name of the thread.
            duty: The duty of which a failed turn is a failure.
            turn: Do the duty once, and return the seconds until the next turn, ``None`` for ``interval``. May raise any
                exception, and is then repeated.
            app: Made current in the thread.
            database: Gives the thread its connections.
            duties: Receives failures.
            interval: Seconds between turns.
            clock: Measures the time between restarts of the thread.
            emit: Receives restarts of the thread.
            last_turn: Called when the thread ends. Must not raise.
        """
        super().__init__(name=name, interval=interval, clock=clock, emit=emit)
        self._duty = duty
        self._do_turn = turn
        self._app = app
        self._database = database
        self._duties = duties
        self._last_turn = last_turn

    def begin(self) -> None:
        self._app.set_current()
        self._database.open()

    def end(self) -> None:
        self._last_turn()
        self._database.close()

    def turn(self) -> float | None:
        """Do one turn. Report an exception, and drop the connections: one that was cut stays unusable."""
        try:
            self._database.refresh()
            return self._do_turn()
        except Exception as exc:
            fault = DatabaseFault.TIMED_OUT if isinstance(exc, TableLocked) else self._database.fault(exc)
            if fault is None:
                self._duties.raised(self._duty, exc)
            else:
                self._duties.failed(self._duty, _DUTY_FAULTS.get(fault, DutyFault.REFUSED), first_line(exc))
            self._database.close()
        return None
