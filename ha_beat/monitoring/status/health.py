"""Health of a replica: why it is not live, why it is not ready to lead, and its warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ha_beat.duties import LateDuty
from ha_beat.monitoring.status import warnings
from ha_beat.monitoring.status.replica import ReplicaStatus
from ha_beat.monitoring.status.warnings import StatusWarning
from ha_beat.monitoring.wording import phrase
from ha_beat.reasons import Duty, HealthReason, WarningCode
from ha_beat.store.membership import Member

#: Seconds for which the schedule may be unreadable before a replica that has read it is not ready.
_SCHEDULE_TOLERANCE = 30.0

#: Details by :class:`HealthReason`; empty if the replica is healthy.
Problems = Mapping[str, str]


def why_not_live(status: ReplicaStatus) -> Problems:
    """Return why the process does not work. Its role and Redis do not matter."""
    found: dict[str, str] = {}
    if status.stalled:
        found[HealthReason.STALLED] = f"{status.idle:.1f} s"
    if not status.election.running:
        found[HealthReason.ELECTION_STOPPED] = ""
    return found


def why_not_ready(status: ReplicaStatus) -> Problems:
    """Return why this replica is not able to lead, whether it leads or not."""
    found = dict(why_not_live(status))
    if status.last_error:
        found[HealthReason.SCHEDULER_FAILED] = status.last_error
    found |= _late_duties_of_a_leader(status)
    if status.term is None:
        if status.unreachable:
            found[HealthReason.REDIS_UNREACHABLE] = status.unreachable
        if status.memory.forbidden:
            found[HealthReason.FORBIDDEN] = status.memory.forbidden
        lease = status.snapshot.lease
        if lease is not None and lease.held and lease.fingerprint != status.replica.fingerprint:
            found[HealthReason.OTHER_APP] = lease.fingerprint
    return found


def _late_duties_of_a_leader(status: ReplicaStatus) -> Problems:
    late = status.duties.late()
    found: dict[str, str] = {}
    schedule, broker = late.get(Duty.READ_SCHEDULE), late.get(Duty.REACH_BROKER)
    tolerated = schedule is None or schedule.seconds <= _SCHEDULE_TOLERANCE
    if not status.schedule_read() or not tolerated:
        found[HealthReason.SCHEDULE_UNREAD] = _why(schedule)
    if broker is not None or not status.duties.ever_done(Duty.REACH_BROKER):
        found[HealthReason.BROKER_UNREACHABLE] = _why(broker)
    if Duty.TAKE_UP in late:
        found[HealthReason.NOT_TAKEN_UP] = _why(late[Duty.TAKE_UP])
    return found


def _why(late: LateDuty | None) -> str:
    return "" if late is None else phrase(late.reason, late.detail)


def current_warnings(status: ReplicaStatus, members: Sequence[Member]) -> list[StatusWarning]:
    """Return the warnings about a replica and its cluster with these members, notices last."""
    snapshot = status.snapshot
    found = [*warnings.of_redis(snapshot, status.unreachable)]
    if snapshot.view is not None and status.term is None:
        found += warnings.of_lease(snapshot.view.lease, status.now_ms())
    found += warnings.of_unattended(snapshot.unattended, status.now_ms())
    found += warnings.of_duties(status.duties.late())
    found += [*status.memory.incidents(), *warnings.of_members(members), *warnings.of_verdicts(snapshot.recent)]
    if len(members) == 1 and not status.unreachable:
        message = "there is only one replica: no standby can take over"
        found.append(StatusWarning(WarningCode.NO_STANDBY, message, "notice"))
    return sorted(found, key=lambda warning: warning.level != "warning")
