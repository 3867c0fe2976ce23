"""Assembly of a replica's monitoring: status, poller, metrics and HTTP endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.events import Events
from ha_beat.monitoring.broker_probe import BrokerProbe
from ha_beat.monitoring.invariants import InvariantChecker
from ha_beat.monitoring.metrics import Metrics
from ha_beat.monitoring.status import ElectionStatus, LeaderWork, Poller, ReplicaStatus
from ha_beat.monitoring.watchdog import Watchdog
from ha_beat.settings import Settings
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Replica
from ha_beat.store.ledger import Ledger
from ha_beat.store.membership import Members

if TYPE_CHECKING:
    from ha_beat.monitoring.http import Endpoint, HttpServer

#: Longest time in seconds that closing waits for the removal of the member record.
_REMOVAL_TIMEOUT = 0.3


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Monitoring of one replica. Neither the main loop nor the election waits for it."""

    status: ReplicaStatus
    poller: Poller
    metrics: Metrics | None
    http: HttpServer | None
    clock: Clock
    watchdog: Watchdog
    broker: BrokerProbe

    def describe(self, schedule: str, scheduler: str) -> None:
        """Take a digest of the schedule, or an empty text, and the scheduler class."""
        self.status.schedule, self.status.scheduler = schedule, scheduler

    def keep_running(self) -> None:
        """Start the threads that do not run. Must be called after any fork."""
        self.poller.thread.keep_running()
        self.watchdog.thread.keep_running()
        self.broker.thread.keep_running()
        if self.http is not None:
            self.http.thread.keep_running()

    def stop(self) -> None:
        """Ask the threads to stop. Does not wait."""
        self.poller.stop()
        self.watchdog.stop()
        self.broker.stop()

    def finish_stop(self) -> None:
        """Wait a moment until the member record is removed. Takes no lock, so a signal handler may call it."""
        until = self.clock.elapsed() + _REMOVAL_TIMEOUT
        while not self.poller.removed and not self.status.unreachable and self.clock.elapsed() < until:
            self.clock.sleep(0.01)
        if self.http is not None:
            self.http.stop()


def set_up_monitoring(
    *,
    replica: Replica,
    settings: Settings,
    keys: Keys,
    client: Callable[[], Any],
    election: ElectionStatus,
    work: LeaderWork,
    check_broker: Callable[[], None],
    clock: Clock,
    events: Events,
    duties: Duties,
    versions: Mapping[str, str],
    compare_clocks: Callable[[Sequence[float]], None],
    endpoint: Endpoint | None,
) -> Monitoring:
    """Return the monitoring of a replica, without connecting. No other thread may use the connections of ``client``.

    ``compare_clocks`` is as in :class:`Poller`. ``endpoint`` is None without HTTP.
    """
    status = ReplicaStatus(
        replica, settings.cluster, clock, election, work, duties, stall_timeout=settings.stall_timeout
    )
    events.subscribe(status.memory)
    members, journal = Members(client, keys), Journal(client, keys)
    checker = InvariantChecker(members, journal, events.emit)
    poller = Poller(
        status,
        members,
        journal,
        clock,
        full=endpoint is not None,
        checker=checker,
        compare_clocks=compare_clocks,
        emit=events.emit,
        ledger=Ledger(client, keys),
    )
    watchdog = Watchdog(status, duties, clock, events.emit)
    broker = BrokerProbe(check_broker, duties, clock, events.emit)
    if endpoint is None:
        return Monitoring(status, poller, None, None, clock, watchdog, broker)
    from ha_beat.monitoring.http import HttpServer, Site

    metrics = Metrics(status, versions, per_entry=settings.metrics_per_entry)
    events.subscribe(metrics)
    http = HttpServer(Site(status, metrics.text, clock), endpoint, duties=duties, emit=events.emit)
    return Monitoring(status, poller, metrics, http, clock, watchdog, broker)
