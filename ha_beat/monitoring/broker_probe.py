"""Thread that checks every few seconds that this replica reaches the broker, even while another one leads."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.reasons import Duty
from ha_beat.threads import RepeatingThread

#: Seconds between two checks, and until the next one after a failure.
_INTERVAL = 10.0
_RETRY = 2.0

#: Seconds without a completed check after which the broker counts as unreachable, because the check hangs.
_WITHIN = 30.0


class BrokerProbe(RepeatingThread):
    """Thread with its own connection to the broker. The main loop never waits for it."""

    def __init__(
        self, check: Callable[[], None], duties: Duties, clock: Clock, emit: Callable[[events.Event], None]
    ) -> None:
        """``check`` makes a round trip to the broker. It ends within a bounded time, and raises if it fails."""
        super().__init__(name="ha_beat-broker", interval=_INTERVAL, clock=clock, emit=emit)
        self._check = check
        self._duties = duties
        self._failed_once = False

    def begin(self) -> None:
        self._duties.expect(Duty.REACH_BROKER, within=_WITHIN)

    def turn(self) -> float | None:
        """Check the broker once."""
        try:
            self._check()
        except Exception as exc:
            # A single failure may only mean that the broker had closed an idle connection.
            if self._failed_once or not self._duties.ever_done(Duty.REACH_BROKER):
                self._duties.raised(Duty.REACH_BROKER, exc)
            self._failed_once = True
            return _RETRY
        self._failed_once = False
        self._duties.done(Duty.REACH_BROKER)
        return None
