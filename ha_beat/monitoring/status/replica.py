"""State of a replica, for health, status and metrics. It is read from memory and never asks Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ha_beat.clock import Clock, to_micros
from ha_beat.duties import Duties, LateDuty
from ha_beat.leader import Enqueuer
from ha_beat.monitoring.status import warnings
from ha_beat.monitoring.status.event_memory import EventMemory
from ha_beat.monitoring.status.snapshot import Snapshot
from ha_beat.monitoring.status.warnings import StatusWarning
from ha_beat.monitoring.wording import phrase
from ha_beat.reasons import Duty, HealthReason, WarningCode
from ha_beat.store.lease import Replica, Term
from ha_beat.store.membership import Member, Upcoming

#: Entries listed as due next.
_UPCOMING = 20


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


#: Seconds for which the schedule may be unreadable before a replica that has read it is not ready.
_SCHEDULE_TOLERANCE = 30.0

#: Seconds within which a new leader must have loaded schedule and ledger.
TAKE_UP_WITHIN = 5.0

#: Details of why a replica is not live or not ready, by :class:`HealthReason`; empty if it is.
Health = Mapping[str, str]


class ReplicaStatus:
    """State of one replica and its cluster. Every method is quick and may be called by any thread.

    It has more than 15 methods, because health, status and metrics read everything here.
    """

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
        """``schedule_read`` returns True if there is a schedule to lead with. ``stall_timeout`` is in seconds."""
        self.replica = replica
        self.cluster = cluster
        self.duties = duties
        self.memory = EventMemory(clock)
        self.snapshot = Snapshot()
        #: Digest of the schedule, empty if it is unknown.
        self.schedule = ""
        #: Scheduler class, as ``module:Class``.
        self.scheduler = ""
        #: Why the main loop's last turn failed, empty if it did not.
        self.last_error = ""
        self.since_ms = round(clock.wall() * 1000)
        self._clock = clock
        self._election = election
        self._enqueuer = enqueuer
        self._schedule_read = schedule_read
        self._stall_timeout = stall_timeout

    # --- Election and Redis

    @property
    def term(self) -> Term | None:
        return self._election.term

    @property
    def role(self) -> str:
        return "leader" if self.term is not None else "standby"

    @property
    def idle(self) -> float:
        """Return the seconds since the main loop last made progress."""
        return self._election.idle

    @property
    def stalled(self) -> bool:
        """True if the main loop makes no progress."""
        return self.idle > self._stall_timeout

    @property
    def taken_up(self) -> bool:
        """True if this replica leads and has loaded schedule and ledger."""
        term = self.term
        return term is not None and self._enqueuer.taken_up(term)

    @property
    def held(self) -> bool:
        """True if this replica leads and waits for the previous holder to stop, after a failover of Redis."""
        return self.term is not None and self._clock.elapsed() < self.memory.held_until

    @property
    def trust_left(self) -> float:
        """Return the seconds for which this replica may lead without another renewal, 0 if it does not lead."""
        term = self.term
        return 0.0 if term is None else max(0.0, term.trusted_until - self._clock.elapsed())

    @property
    def unreachable(self) -> str:
        """Return why Redis did not answer last time, empty if it did."""
        return self.memory.unreachable or self.snapshot.unreachable

    @property
    def snapshot_age(self) -> float:
        """Return the seconds since the last poll that Redis answered."""
        return self._clock.elapsed() - self.snapshot.polled_at

    def elapsed(self) -> float:
        """Return seconds on the clock that never steps."""
        return self._clock.elapsed()

    def now_ms(self) -> int:
        """Return the Redis server's time, extrapolated from the last poll, or this machine's before the first."""
        view = self.snapshot.view
        if view is None:
            return round(self._clock.wall() * 1000)
        return view.server_ms + round(self.snapshot_age * 1000)

    # --- Health

    def live(self) -> Health:
        """Return why the process does not work. Its role and Redis do not matter."""
        found: dict[str, str] = {}
        if self.stalled:
            found[HealthReason.STALLED] = f"{self.idle:.1f} s"
        if not self._election.running:
            found[HealthReason.ELECTION_STOPPED] = ""
        return found

    def ready(self) -> Health:
        """Return why this replica is not able to lead, whether it leads or not."""
        found = dict(self.live())
        if self.last_error:
            found[HealthReason.SCHEDULER_FAILED] = self.last_error
        found |= self._duties_for_leading()
        if self.term is None:
            if self.unreachable:
                found[HealthReason.REDIS_UNREACHABLE] = self.unreachable
            if self.memory.forbidden:
                found[HealthReason.FORBIDDEN] = self.memory.forbidden
            lease = self.snapshot.view.lease if self.snapshot.view else None
            if lease is not None and lease.held and lease.fingerprint != self.replica.fingerprint:
                found[HealthReason.OTHER_APP] = lease.fingerprint
        return found

    def _duties_for_leading(self) -> Health:
        """Return which duties that a leader needs are late."""
        late = self.duties.late()
        found: dict[str, str] = {}
        schedule, broker = late.get(Duty.READ_SCHEDULE), late.get(Duty.REACH_BROKER)
        tolerated = schedule is None or schedule.seconds <= _SCHEDULE_TOLERANCE
        if not self._schedule_read() or not tolerated:
            found[HealthReason.SCHEDULE_UNREAD] = _why(schedule)
        if broker is not None or not self.duties.ever_done(Duty.REACH_BROKER):
            found[HealthReason.BROKER_UNREACHABLE] = _why(broker)
        if Duty.TAKE_UP in late:
            found[HealthReason.NOT_TAKEN_UP] = _why(late[Duty.TAKE_UP])
        return found

    # --- Schedule

    def entries(self) -> int:
        """Return the number of entries in the due queue."""
        return 0 if self.term is None else len(self._enqueuer.due_queue)

    def scheduled(self) -> frozenset[str]:
        """Return the names of the entries in the due queue, none while it is not complete."""
        term = self.term
        if term is None or not self._enqueuer.serves(term):
            return frozenset()
        return frozenset(state.label for state in list(self._enqueuer.due_queue.entries()))

    def backlog(self) -> int:
        """Return the number of entries that are due, 0 while another leader has them on its queue."""
        if not self.taken_up:
            return self.snapshot.unattended.due
        return self._enqueuer.due_queue.backlog(self._enqueuer.now())

    def overdue(self) -> float:
        """Return for how many seconds the oldest due entry has been due, 0 while another leader has it on its queue."""
        if not self.taken_up:
            return self.snapshot.unattended.overdue(self.now_ms())
        return self._enqueuer.due_queue.overdue(self._enqueuer.now())

    # --- Cluster

    def member(self) -> Member:
        """Return this replica's member record."""
        replica = self.replica
        member = Member(
            id=replica.id,
            role=self.role,
            host=replica.host,
            pid=replica.pid,
            version=replica.version,
            since_ms=self.since_ms,
            http=replica.http,
            url=replica.url,
            fingerprint=replica.fingerprint,
            schedule=self.schedule,
            scheduler=self.scheduler,
            clock_offset_ms=round(self.snapshot.clock_offset * 1000),
            # The record is in Redis, so Redis is reachable.
            not_ready={code: why for code, why in self.ready().items() if code != HealthReason.REDIS_UNREACHABLE},
        )
        term = self.term
        if term is None:
            return member
        due_queue = self._enqueuer.due_queue
        upcoming = due_queue.upcoming(_UPCOMING)
        return replace(
            member,
            epoch=term.epoch,
            taken_up=self.taken_up,
            entries=len(due_queue),
            backlog=self.backlog(),
            overdue_ms=round(self.overdue() * 1000),
            upcoming=tuple(Upcoming(state.label, state.entry.task, to_micros(at) // 1000) for at, state in upcoming),
            failing=dict(self.memory.failing),
        )

    def members(self) -> list[Member]:
        """Return the replicas alive at the last poll, and this one as it is now, by id."""
        view = self.snapshot.view
        others = [each for each in view.members if each.id != self.replica.id] if view else []
        this = replace(self.member(), seen_ms=self.now_ms())
        return sorted([*others, this], key=lambda each: each.id)

    def warnings(self, members: Sequence[Member] | None = None) -> list[StatusWarning]:
        """Return the current warnings, notices last."""
        members = self.members() if members is None else members
        snapshot = self.snapshot
        found = [*warnings.of_redis(snapshot, self.unreachable)]
        if snapshot.view is not None and self.term is None:
            found += warnings.of_lease(snapshot.view.lease, self.now_ms())
        found += [*warnings.of_unattended(snapshot.unattended, self.now_ms())]
        found += [*warnings.of_duties(self.duties.late())]
        found += [*self.memory.incidents(), *warnings.of_members(members), *warnings.of_verdicts(snapshot.recent)]
        if len(members) == 1 and not self.unreachable:
            message = "there is only one replica: no standby can take over"
            found.append(StatusWarning(WarningCode.NO_STANDBY, message, "notice"))
        return sorted(found, key=lambda warning: warning.level != "warning")


def _why(late: LateDuty | None) -> str:
    return "" if late is None else phrase(late.reason, late.detail)
