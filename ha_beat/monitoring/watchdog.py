"""Thread that watches the other threads of a replica. It waits for no server and for no log."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.threads import LastingThread

#: Seconds between two checks.
_INTERVAL = 0.5


class Watchdog:
    """Thread that reports late duties."""

    def __init__(self, duties: Duties, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._duties = duties
        self._clock = clock
        self._closing = False
        self.thread = LastingThread(name="ha_beat-watchdog", run=self._run, clock=clock, emit=emit)

    def stop(self) -> None:
        """Ask the thread to stop. Does not wait, so a signal handler may call it."""
        self._closing = True
        self.thread.stop()

    def _run(self) -> None:
        while not self._closing:
            self._duties.check()
            self._clock.sleep(_INTERVAL)
