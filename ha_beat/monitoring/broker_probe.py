"""Thread that checks every few seconds that this replica reaches the broker, also while it stands by."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.reasons import Duty
from ha_beat.threads import LastingThread, Wake

#: Seconds between two checks, and until the next one after a failure.
_INTERVAL = 10.0
_RETRY = 2.0

#: Seconds without a completed check after which the broker counts as unreachable: the check itself hangs.
_WITHIN = 30.0


class BrokerProbe:
    """Thread with its own connection to the broker, so that the main loop never waits for it."""

    def __init__(
        self, check: Callable[[], None], duties: Duties, clock: Clock, emit: Callable[[events.Event], None]
    ) -> None:
        """``check`` makes a round trip to the broker, in a bounded time, and raises if it fails."""
        self._check = check
        self._duties = duties
        self._wake = Wake()
        self._failed_once = False
        self._closing = False
        self.thread = LastingThread(name="ha_beat-broker", run=self._run, clock=clock, emit=emit)

    def stop(self) -> None:
        """Ask the thread to stop. Does not wait, so a signal handler may call it."""
        self._closing = True
        self._wake()
        self.thread.stop()

    def probe(self) -> float:
        """Check the broker once. Return the seconds until the next check."""
        try:
            self._check()
        except Exception as exc:
            # A single failure of a broker that was reached may be a connection that the broker had closed.
            if self._failed_once or not self._duties.ever_done(Duty.REACH_BROKER):
                self._duties.raised(Duty.REACH_BROKER, exc)
            self._failed_once = True
            return _RETRY
        self._failed_once = False
        self._duties.done(Duty.REACH_BROKER)
        return _INTERVAL

    def _run(self) -> None:
        self._duties.expect(Duty.REACH_BROKER, within=_WITHIN)
        while not self._closing:
            self._wake.wait(self.probe())
