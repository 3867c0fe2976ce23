"""Facts about a replica and its cluster, for health, status and metrics. Read from memory, never from Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.leader import Enqueuer
from ha_beat.monitoring.status.event_memory import EventMemory
from ha_beat.monitoring.status.snapshot import Snapshot
from ha_beat.store.lease import Replica, Term


class ElectionStatus(Protocol):
    """State of the election thread."""

    @property
    def term(self) -> Term | None:
        """Return the term in which this replica leads, while it is trusted."""

    @property
    def idle(self) -> float:
        """Return the seconds since the main loop last made progress."""

    @property
    def running(self) -> bool:
        """True if the thread is alive."""


class ReplicaStatus:
    """State of one replica and its cluster. Every method is quick and may be called by any thread."""

    def __init__(
        self,
        replica: Replica,
        cluster: str,
        clock: Clock,
        election: ElectionStatus,
        enqueuer: Enqueuer,
        duties: Duties,
        *,
        schedule_read: Callable[[], bool],
        stall_timeout: float,
    ) -> None:
        """``schedule_read`` returns True once the schedule was read. ``stall_timeout`` is in seconds."""
        self.replica = replica
        self.cluster = cluster
        self.clock = clock
        self.election = election
        self.enqueuer = enqueuer
        self.duties = duties
        self.schedule_read = schedule_read
        self.memory = EventMemory(clock)
        self.snapshot = Snapshot()
        #: Digest of the schedule, empty if it is unknown.
        self.schedule = ""
        #: Scheduler class, as ``module:Class``.
        self.scheduler = ""
        #: Why the main loop's last turn failed, empty if it did not.
        self.last_error = ""
        self.since_ms = round(clock.wall() * 1000)
        self._stall_timeout = stall_timeout

    # --- Election and Redis

    @property
    def term(self) -> Term | None:
        return self.election.term

    @property
    def role(self) -> str:
        return "leader" if self.term is not None else "standby"

    @property
    def idle(self) -> float:
        """Return the seconds since the main loop last made progress."""
        return self.election.idle

    @property
    def stalled(self) -> bool:
        """True if the main loop makes no progress."""
        return self.idle > self._stall_timeout

    @property
    def taken_up(self) -> bool:
        """True if this replica leads and has loaded schedule and ledger."""
        term = self.term
        return term is not None and self.enqueuer.taken_up(term)

    @property
    def held(self) -> bool:
        """True if this replica leads and waits for the previous holder to stop, after a failover of Redis."""
        return self.term is not None and self.clock.elapsed() < self.memory.held_until

    @property
    def trust_left(self) -> float:
        """Return the seconds for which this replica may lead without another renewal, 0 if it does not lead."""
        term = self.term
        return 0.0 if term is None else max(0.0, term.trusted_until - self.clock.elapsed())

    @property
    def unreachable(self) -> str:
        """Return why Redis did not answer last time, empty if it did."""
        return self.memory.unreachable or self.snapshot.unreachable

    @property
    def snapshot_age(self) -> float:
        """Return the seconds since the last poll that Redis answered."""
        return self.clock.elapsed() - self.snapshot.polled_at

    def now_ms(self) -> int:
        """Return the Redis server's time, extrapolated from the last poll, or this machine's before the first."""
        view = self.snapshot.view
        if view is None:
            return round(self.clock.wall() * 1000)
        return view.server_ms + round(self.snapshot_age * 1000)

    # --- Schedule

    def entries(self) -> int:
        """Return the number of entries in the due queue."""
        return 0 if self.term is None else len(self.enqueuer.due_queue)

    def scheduled(self) -> frozenset[str]:
        """Return the names of the entries in the due queue, none until it is complete."""
        term = self.term
        if term is None or not self.enqueuer.serves(term):
            return frozenset()
        return frozenset(state.label for state in list(self.enqueuer.due_queue.entries()))

    def backlog(self) -> int:
        """Return the number of due entries, 0 if another replica leads and has loaded the schedule."""
        if not self.taken_up:
            return self.snapshot.unattended.due
        return self.enqueuer.due_queue.backlog(self.enqueuer.now())

    def overdue(self) -> float:
        """Return for how many seconds the oldest entry of the backlog has been due."""
        if not self.taken_up:
            return self.snapshot.unattended.overdue(self.now_ms())
        return self.enqueuer.due_queue.overdue(self.enqueuer.now())
