"""What a replica knows of itself and of the cluster, kept in memory for whoever asks. It never asks Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from ha_beat import events
from ha_beat.clock import Clock, to_micros
from ha_beat.leader.due_queue import DueQueue, seconds_overdue
from ha_beat.monitoring.status import warnings
from ha_beat.monitoring.status.snapshot import Look
from ha_beat.monitoring.status.warnings import Warn
from ha_beat.monitoring.wording import phrase
from ha_beat.reasons import HealthReason, WarningCode
from ha_beat.settings import redact_credentials
from ha_beat.store.lease import Replica, Term
from ha_beat.store.membership import Member, Upcoming

#: Seconds for which something that happened once is shown as a warning.
_REMEMBERED = 3600.0

_UPCOMING = 20
_FAILING = 20


class Vitals(Protocol):
    """What the board asks of the elector."""

    @property
    def term(self) -> Term | None: ...

    @property
    def idle(self) -> float: ...

    @property
    def running(self) -> bool: ...


#: Details of why a replica is not live or not ready, by :class:`HealthReason`; empty if it is.
Health = Mapping[str, str]


class Board:
    """The one place where a replica's state can be read. Subscribes to events; every method is quick."""

    def __init__(
        self,
        replica: Replica,
        cluster: str,
        clock: Clock,
        vitals: Vitals,
        due_queue: Callable[[], DueQueue],
        now: Callable[[], datetime],
        *,
        stall_timeout: float,
    ) -> None:
        """``now`` is the scheduling time; ``stall_timeout`` is in seconds."""
        self.replica = replica
        self.cluster = cluster
        self.look = Look()
        self.hurry = False
        self._clock = clock
        self._vitals = vitals
        self._due_queue = due_queue
        self._stall_timeout = stall_timeout
        self._now = now
        #: A digest of the schedule, empty where it is not known.
        self.schedule = ""
        #: Why the main loop's last turn failed (the schedule's store is away, say); empty where it didn't.
        self.trouble = ""
        self.since_ms = round(clock.wall() * 1000)
        self._unreachable = ""
        self._forbidden = ""
        self._failing: dict[str, str] = {}
        self._broken: deque[tuple[float, Warn]] = deque(maxlen=20)

    # --- Events

    def __call__(self, event: events.Event) -> None:  # noqa: PLR0912 -- one case for each event
        match event:
            case events.TermStarted():
                self._forbidden, self.hurry = "", True
            case events.TermEnded():
                self._failing, self.hurry = {}, True
            case events.LeaderSeen():
                self.hurry = True
            case events.LeaseUnreachable(detail=detail):
                self._unreachable, self.hurry = detail, True
            case events.LeaseReachable():
                self._unreachable, self.hurry = "", True
            case events.LeadingForbidden(detail=detail):
                self._forbidden = detail
            case events.EntryFailed(entry=entry, reason=reason, detail=detail):
                if entry in self._failing or len(self._failing) < _FAILING:
                    self._failing[entry] = phrase(reason, detail)[:200]
            case events.Enqueued(entry=entry):
                self._failing.pop(entry, None)
            case events.InvariantBroken(rule=rule, subject=subject, detail=detail):
                self._note(WarningCode.INVARIANT_BROKEN, f"{phrase(rule)}: {subject}: {detail}")
            case events.StateLost(reason=reason):
                self._note(WarningCode.STATE_LOST, f"Redis lost data: {phrase(reason)}")
            case events.ClockOffset():
                self.hurry = True
            case _:
                pass

    def _note(self, code: WarningCode, message: str) -> None:
        self._broken.append((self._clock.elapsed(), Warn(code, message)))

    # --- Probes

    @property
    def term(self) -> Term | None:
        return self._vitals.term

    @property
    def role(self) -> str:
        return "leader" if self._vitals.term is not None else "standby"

    @property
    def idle(self) -> float:
        """Seconds since the main loop last moved."""
        return self._vitals.idle

    @property
    def trust_left(self) -> float:
        """Seconds for which this replica may go on without hearing from Redis; 0 where it does not lead."""
        term = self._vitals.term
        return 0.0 if term is None else max(0.0, term.trusted_until - self._clock.elapsed())

    @property
    def why_unreachable(self) -> str:
        """Why Redis did not answer last time; empty where it did."""
        return self._unreachable or self.look.unreachable

    @property
    def reachable(self) -> bool:
        return not self.why_unreachable

    @property
    def look_age(self) -> float:
        """Seconds since the last look that Redis answered."""
        return self._clock.elapsed() - self.look.looked_at

    def live(self) -> Health:
        """Return why the process does not work. Its role and Redis do not matter."""
        found: dict[str, str] = {}
        idle = self.idle
        if idle > self._stall_timeout:
            found[HealthReason.STALLED] = f"{idle:.1f} s"
        if not self._vitals.running:
            found[HealthReason.ELECTION_STOPPED] = ""
        return found

    def ready(self) -> Health:
        """Return why this replica does not lead and could not."""
        found = dict(self.live())
        if self.trouble:
            found[HealthReason.SCHEDULER_FAILED] = redact_credentials(self.trouble)
        if self._vitals.term is None:
            if self.why_unreachable:
                found[HealthReason.REDIS_UNREACHABLE] = redact_credentials(self.why_unreachable)
            if self._forbidden:
                found[HealthReason.FORBIDDEN] = redact_credentials(self._forbidden)
            lease = self.look.view.lease if self.look.view else None
            if lease is not None and lease.held and lease.fingerprint != self.replica.fingerprint:
                found[HealthReason.OTHER_APP] = lease.fingerprint
        return found

    # --- What it shows

    def member(self) -> Member:
        """What this replica says of itself to the others."""
        replica = self.replica
        member = Member(
            id=replica.id,
            role=self.role,
            host=replica.host,
            pid=replica.pid,
            version=replica.version,
            since_ms=self.since_ms,
            http=replica.http,
            fingerprint=replica.fingerprint,
            schedule=self.schedule,
            clock_offset_ms=round(self.look.clock_offset * 1000),
            # The record is in Redis, so Redis is reachable.
            not_ready={code: why for code, why in self.ready().items() if code != HealthReason.REDIS_UNREACHABLE},
        )
        term = self._vitals.term
        if term is None:
            return member
        due_queue = self._due_queue()
        upcoming = due_queue.upcoming(_UPCOMING)
        return replace(
            member,
            epoch=term.epoch,
            entries=len(due_queue),
            backlog=self.backlog(),
            overdue_ms=round(seconds_overdue(upcoming, self._now()) * 1000),
            upcoming=tuple(Upcoming(state.label, state.entry.task, to_micros(at) // 1000) for at, state in upcoming),
            failing=dict(self._failing),
        )

    def backlog(self) -> int:
        """How many entries of the leader's due queue are due; 0 where this is a standby."""
        if self._vitals.term is None:
            return 0
        return self._due_queue().backlog(self._now())

    def overdue(self) -> float:
        """For how many seconds the entry that waits longest has been due; 0 where this is a standby."""
        return 0.0 if self._vitals.term is None else self._due_queue().overdue(self._now())

    def entries(self) -> int:
        return 0 if self._vitals.term is None else len(self._due_queue())

    def now_ms(self) -> int:
        """The Redis server's time now, as far as it is known, else this machine's."""
        look = self.look
        if look.view is None:
            return round(self._clock.wall() * 1000)
        return look.view.server_ms + round((self._clock.elapsed() - look.looked_at) * 1000)

    def members(self) -> list[Member]:
        """Every replica alive at the last look, this one as it is now."""
        view = self.look.view
        others = [each for each in view.members if each.id != self.replica.id] if view else []
        this = replace(self.member(), seen_ms=self.now_ms())
        return sorted([*others, this], key=lambda each: each.id)

    def warnings(self, members: Sequence[Member] | None = None) -> list[Warn]:
        """What a person should look at, the worst first."""
        members = self.members() if members is None else members
        look = self.look
        found = [*warnings.of_redis(look, self.why_unreachable)]
        if look.view is not None and self._vitals.term is None:
            found += warnings.of_lease(look.view.lease, self.now_ms())
        found += [*self._of_late(), *warnings.of_members(members), *warnings.of_verdicts(look.recent)]
        if len(members) == 1 and self.reachable:
            found.append(Warn(WarningCode.NO_STANDBY, "there is only one replica: no standby can take over", "notice"))
        return sorted(found, key=lambda warning: warning.level != "warning")

    def _of_late(self) -> Iterable[Warn]:
        """What can't be asked again, but should not go by unseen."""
        since = self._clock.elapsed() - _REMEMBERED
        return [warning for at, warning in tuple(self._broken) if at >= since]
