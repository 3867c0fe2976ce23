"""Member record of a replica, and the members of the cluster as this replica sees them."""

from __future__ import annotations

from dataclasses import asdict, replace

from ha_beat.clock import to_micros
from ha_beat.monitoring.status.health import why_not_ready
from ha_beat.monitoring.status.replica import ReplicaStatus
from ha_beat.reasons import HealthReason
from ha_beat.store.membership import Member, Upcoming

#: Entries listed as due next.
_UPCOMING = 20


def member_record(status: ReplicaStatus) -> Member:
    """Return the member record of this replica."""
    record = Member(
        **asdict(status.replica),
        role=status.role,
        since_ms=status.since_ms,
        schedule=status.schedule,
        scheduler=status.scheduler,
        clock_offset_ms=round(status.snapshot.clock_offset * 1000),
        # The record is in Redis, so Redis is reachable.
        not_ready={code: why for code, why in why_not_ready(status).items() if code != HealthReason.REDIS_UNREACHABLE},
    )
    term, queue = status.term, status.enqueuer.due_queue
    if term is None:
        return record
    upcoming = queue.upcoming(_UPCOMING)
    return replace(
        record,
        epoch=term.epoch,
        taken_up=status.taken_up,
        entries=len(queue),
        backlog=status.backlog(),
        overdue_ms=round(status.overdue() * 1000),
        upcoming=tuple(Upcoming(state.label, state.entry.task, to_micros(at) // 1000) for at, state in upcoming),
        failing=dict(status.memory.failing),
    )


def members_seen(status: ReplicaStatus) -> list[Member]:
    """Return the replicas alive at the last poll, and this one in its present state, by id."""
    view = status.snapshot.view
    others = [each for each in view.members if each.id != status.replica.id] if view else []
    this = replace(member_record(status), seen_ms=status.now_ms())
    return sorted([*others, this], key=lambda each: each.id)
