"""Thread that watches the other threads of a replica. It never waits for a server or for the log."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.monitoring.service_manager import ServiceManager
from ha_beat.monitoring.status import ReplicaStatus, why_not_ready
from ha_beat.reasons import Duty, DutyFault
from ha_beat.threads import RepeatingThread

#: Seconds between two checks.
_INTERVAL = 0.5

#: Seconds within which a new leader must have loaded schedule and ledger.
_TAKE_UP_WITHIN = 5.0


class Watchdog(RepeatingThread):
    """Thread that notices what a replica's other threads cannot report themselves, and reports late duties."""

    def __init__(
        self,
        status: ReplicaStatus,
        duties: Duties,
        clock: Clock,
        emit: Callable[[events.Event], None],
        manager: ServiceManager | None = None,
    ) -> None:
        super().__init__(name="ha_beat-watchdog", interval=_INTERVAL, clock=clock, emit=emit)
        self._status = status
        self._duties = duties
        self._manager = manager or ServiceManager()

    def stop(self) -> None:
        # Not in the thread, which may sleep until the process has ended.
        self._manager.stopping()
        super().stop()

    def turn(self) -> None:
        """Check the main loop and the leader's work, and report what is late."""
        status, duties = self._status, self._duties
        if status.stalled:
            duties.failed(Duty.MAIN_LOOP, DutyFault.OVERDUE)
        else:
            duties.done(Duty.MAIN_LOOP)
        if status.term is None or status.held:
            duties.suspend(Duty.TAKE_UP)
        else:
            # Expect it even if it is done, because the next term may begin before the next check.
            duties.expect(Duty.TAKE_UP, within=_TAKE_UP_WITHIN)
            if status.taken_up:
                duties.done(Duty.TAKE_UP)
        duties.check()
        self._manager.watch(ready=not why_not_ready(status), progress=not status.stalled)
