"""Thread with database connections of its own, which does one duty in turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from celery import Celery
from django.db import InterfaceError, OperationalError, close_old_connections, connections
from django.db.utils import Error as AnyDatabaseError

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.django.limits import first_line, limit_connections, timed_out
from ha_beat.django.run_state import TableLocked
from ha_beat.duties import Duties
from ha_beat.reasons import Duty, DutyFault
from ha_beat.threads import LastingThread

#: Errors of a database that is unreachable or not migrated.
DATABASE_ERRORS = (AnyDatabaseError, InterfaceError, OSError, TableLocked)


class DatabaseThread:
    """Thread that repeats a turn."""

    def __init__(
        self,
        name: str,
        duty: Duty,
        turn: Callable[[], float | None],
        *,
        app: Celery,
        aliases: Callable[[], Iterable[str]],
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
            aliases: Return the databases that it uses.
            duties: Receives failures.
            interval: Seconds between turns.
            clock: Measures the time between restarts of the thread.
            emit: Receives restarts of the thread.
            last_turn: Called when the thread ends. Must not raise.
        """
        self._duty = duty
        self._do_turn = turn
        self._app = app
        self._aliases = aliases
        self._duties = duties
        self._interval = interval
        self._last_turn = last_turn
        self._wake = threading.Event()
        self._thread = LastingThread(name=name, run=self._run, clock=clock, emit=emit)
        self._closing = False

    def keep_running(self) -> None:
        """Start the thread, or start it again if it has ended. Must be called after any fork."""
        self._thread.keep_running()

    def wake(self) -> None:
        """Start the next turn now."""
        self._wake.set()

    def stop(self) -> None:
        """Start no further turn. Takes no lock, so a signal handler may call it."""
        self._closing = True
        self._thread.stop()

    def close(self, seconds: float) -> None:
        """End the thread. Wait at most ``seconds``; after that the thread ends with the process."""
        self.stop()
        self._wake.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        self._app.set_current()
        limit_connections(self._aliases())
        while not self._closing:
            pause = self.turn()
            self._wake.wait(self._interval if pause is None else pause)
            self._wake.clear()
        self._last_turn()
        connections.close_all()

    def turn(self) -> float | None:
        """Do one turn. Report an exception, and drop the connections: one that was cut stays unusable."""
        try:
            close_old_connections()
            return self._do_turn()
        except DATABASE_ERRORS as exc:
            self._duties.failed(self._duty, _fault(exc), first_line(exc))
            connections.close_all()
        except Exception as exc:
            self._duties.raised(self._duty, exc)
            connections.close_all()
        return None


def _fault(exc: BaseException) -> DutyFault:
    if isinstance(exc, TableLocked) or timed_out(exc):
        return DutyFault.TIMED_OUT
    unreachable = isinstance(exc, OperationalError | InterfaceError | OSError)
    return DutyFault.UNREACHABLE if unreachable else DutyFault.REFUSED
