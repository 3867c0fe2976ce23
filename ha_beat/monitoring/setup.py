"""Monitoring of one replica: its status, and the threads that keep it up to date and show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ha_beat.clock import Clock
from ha_beat.monitoring.broker_probe import BrokerProbe
from ha_beat.monitoring.status import Poller, ReplicaStatus
from ha_beat.monitoring.watchdog import Watchdog

if TYPE_CHECKING:
    from ha_beat.monitoring.http.server import HttpServer

#: Longest time in seconds that closing waits for the removal of the member record.
_REMOVAL_TIMEOUT = 0.3


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Monitoring of one replica. Neither the main loop nor the election waits for it."""

    status: ReplicaStatus
    poller: Poller
    watchdog: Watchdog
    broker: BrokerProbe
    http: HttpServer | None
    clock: Clock

    def set_scheduler(self, schedule: str, scheduler: str) -> None:
        """Set the digest of the schedule, empty if it is unknown, and the scheduler class."""
        self.status.schedule, self.status.scheduler = schedule, scheduler

    def keep_running(self) -> None:
        """Start the threads that do not run. Must be called after any fork."""
        for thread in (self.poller, self.watchdog, self.broker):
            thread.keep_running()
        if self.http is not None:
            self.http.thread.keep_running()

    def stop(self) -> None:
        """Ask the threads except HTTP to stop. Does not wait, so a signal handler may call it."""
        for thread in (self.poller, self.watchdog, self.broker):
            thread.stop()
            thread.wake()

    def finish_stop(self) -> None:
        """Wait a moment for the removal of the member record, then stop HTTP. Takes no lock, like :meth:`stop`."""
        until = self.clock.elapsed() + _REMOVAL_TIMEOUT
        while not self.poller.removed and not self.status.unreachable and self.clock.elapsed() < until:
            self.clock.sleep(0.01)
        if self.http is not None:
            self.http.stop()
