"""A replica made visible: its board, its place among the members, and where it is asked for, metrics and HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ha_beat.clock import Clock
from ha_beat.events import Events
from ha_beat.leader.due_queue import DueQueue
from ha_beat.monitoring.invariants import Patrol
from ha_beat.monitoring.metrics import Metrics
from ha_beat.monitoring.status import Board, Vitals, Watcher
from ha_beat.settings import Settings
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Replica
from ha_beat.store.membership import Members

if TYPE_CHECKING:
    from ha_beat.monitoring.http import HttpServer

#: Seconds that closing waits for the replica to sign off.
_FAREWELL = 0.3


@dataclass(frozen=True, slots=True)
class Observation:
    """The parts. None of them is waited for by the main loop or the election."""

    board: Board
    watcher: Watcher
    metrics: Metrics | None
    http: HttpServer | None
    clock: Clock

    def start(self, schedule: str) -> None:
        """To be called after any fork; ``schedule`` is a digest of the replica's schedule, empty where unknown."""
        self.board.schedule = schedule
        self.watcher.start()
        if self.http is not None:
            self.http.start()

    def stop(self) -> None:
        """Sign off, soon. Waits for nothing."""
        self.watcher.stop()

    def wait_for_farewell(self) -> None:
        """Give the watcher the moment that it needs. May run inside a signal handler: it waits on no lock."""
        until = self.clock.elapsed() + _FAREWELL
        while not self.watcher.gone and self.board.reachable and self.clock.elapsed() < until:
            self.clock.sleep(0.01)
        if self.http is not None:
            self.http.stop()


def observe(
    replica: Replica,
    settings: Settings,
    keys: Keys,
    client: Callable[[], Any],
    vitals: Vitals,
    due_queue: Callable[[], DueQueue],
    now: Callable[[], datetime],
    clock: Clock,
    events: Events,
    versions: Mapping[str, str],
) -> Observation:
    """Put the parts together. ``client`` gives connections that no other thread uses; nothing is connected yet."""
    board = Board(
        replica,
        settings.cluster,
        clock,
        vitals,
        due_queue,
        now,
        stall_timeout=settings.stall_timeout,
    )
    events.subscribe(board)
    address = settings.http_address
    members, journal = Members(client, keys), Journal(client, keys)
    patrol = Patrol(members, journal, events.emit)
    watcher = Watcher(board, members, journal, clock, looking=address is not None, patrol=patrol, emit=events.emit)
    if address is None:
        return Observation(board, watcher, None, None, clock)
    from ha_beat.monitoring.http import HttpServer, Site

    metrics = Metrics(board, versions, per_entry=settings.metrics_per_entry)
    events.subscribe(metrics)
    return Observation(board, watcher, metrics, HttpServer(Site(board, metrics.text, clock), *address), clock)
