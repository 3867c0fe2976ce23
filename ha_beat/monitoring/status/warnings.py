"""Warnings of the status, the page and the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ha_beat.duties import LateDuty
from ha_beat.monitoring.request_wording import pause_text
from ha_beat.monitoring.status.snapshot import Snapshot
from ha_beat.monitoring.status.unattended import Unattended
from ha_beat.monitoring.wording import (
    duration,
    duty_effect,
    entries_text,
    health,
    instant,
    occurrences,
    phrase,
    sentence,
)
from ha_beat.reasons import Duty, WarningCode
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import VerdictRecord
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import Member

#: Seconds by which a clock may differ from the Redis server's without a warning.
CLOCK_TOLERANCE = 2.0

#: Paused entries that the warnings list.
_PAUSED_LISTED = 10

#: Seconds for which an occurrence may be overdue without a warning.
_OVERDUE_TOLERANCE = 30.0


@dataclass(frozen=True, slots=True)
class StatusWarning:
    """Condition that needs attention. ``level`` is ``warning`` or ``notice``."""

    code: WarningCode
    message: str
    level: str = "warning"


def of_redis(snapshot: Snapshot, unreachable: str) -> Iterable[StatusWarning]:
    """Yield warnings about Redis and the pause."""
    if unreachable:
        yield StatusWarning(WarningCode.REDIS_UNREACHABLE, f"Redis is unreachable: {unreachable}")
    policy = snapshot.server.eviction_policy if snapshot.server else ""
    if policy.startswith("allkeys"):
        message = f"Redis may evict the lease and the ledger: its maxmemory-policy is {policy}"
        yield StatusWarning(WarningCode.EVICTION_POLICY, message)
    if snapshot.unreadable:
        names = ", ".join(snapshot.unreadable[:5])
        message = f"{len(snapshot.unreadable)} records in Redis can't be read and are ignored: {names}"
        yield StatusWarning(WarningCode.RECORD_UNREADABLE, message)
    if snapshot.view is not None and snapshot.view.paused:
        words = pause_text(Pause.parse(snapshot.view.paused))
        yield StatusWarning(WarningCode.PAUSED, f"the cluster is paused {words}", "notice")
    if snapshot.view is not None:
        for entry, each in list(entry_pauses.in_force(snapshot.view.paused_entries).items())[:_PAUSED_LISTED]:
            words = f"{each['name'] or entry} is paused {pause_text(Pause.of(each))}"
            yield StatusWarning(WarningCode.ENTRY_PAUSED, words, "notice")


def of_lease(lease: LeaseRecord | None, now_ms: int) -> Iterable[StatusWarning]:
    """Yield a warning if there is no leader. ``now_ms`` is the Redis server's time."""
    if lease is None or not lease.held:
        yield StatusWarning(WarningCode.NO_LEADER, "there is no leader")
    elif not lease.leads(now_ms):
        message = f"{lease.holder} holds the lease, but has not renewed it for {lease.silent_ms(now_ms) / 1000:.1f} s"
        yield StatusWarning(WarningCode.NO_LEADER, message)


def of_members(members: Sequence[Member]) -> Iterable[StatusWarning]:
    """Yield warnings about each replica, and about differences between the replicas."""
    for each in members:
        offset = each.clock_offset_ms / 1000
        if abs(offset) > CLOCK_TOLERANCE:
            side = "ahead of" if offset > 0 else "behind"
            message = f"{each.id}: its clock is {abs(offset):.1f} s {side} Redis' clock"
            yield StatusWarning(WarningCode.CLOCK_OFFSET, message)
        yield from (StatusWarning(WarningCode.NOT_READY, f"{each.id}: {why}") for why in health(each.not_ready))
        for entry, why in each.failing.items():
            yield StatusWarning(WarningCode.ENTRY_FAILING, f"{entry}: {why}")
        if each.overdue_ms > _OVERDUE_TOLERANCE * 1000:
            message = f"the oldest due occurrence has been due for {each.overdue_ms / 1000:.0f} s"
            yield StatusWarning(WarningCode.OVERDUE, message)
    if len({each.schedule for each in members if each.schedule}) > 1:
        message = "the replicas have different schedules, which is normal only during a deploy"
        yield StatusWarning(WarningCode.SCHEDULE_DRIFT, message)
    if len({each.version for each in members}) > 1:
        yield StatusWarning(WarningCode.VERSION_MIX, "the replicas run different versions of ha_beat", "notice")


def of_unattended(found: Unattended, now_ms: int) -> Iterable[StatusWarning]:
    """Yield a warning if entries are due while no leader has loaded the schedule."""
    if found.due:
        late = duration(found.overdue(now_ms))
        message = f"no leader has loaded the schedule: {entries_text(found.due)} due, the oldest for {late}"
        yield StatusWarning(WarningCode.OVERDUE, message)


def of_duties(late: Mapping[Duty, LateDuty]) -> Iterable[StatusWarning]:
    """Yield a warning for each duty of this replica that is late."""
    for duty, why in late.items():
        words = f"{sentence(phrase(duty))} has not worked for {duration(why.seconds)}: {phrase(why.reason, why.detail)}"
        yield StatusWarning(WarningCode.DUTY_LATE, f"{words}. {duty_effect(duty)}")


def of_verdicts(recent: Sequence[VerdictRecord]) -> Iterable[StatusWarning]:
    """Yield a warning if the delivery of recent occurrences is still unknown."""
    enqueued = {(record.entry, record.first) for record in recent if record.verdict == "enqueued"}
    uncertain = [
        record for record in recent if record.verdict == "uncertain" and (record.entry, record.first) not in enqueued
    ]
    if uncertain:
        latest = f"the latest is {uncertain[-1].label}, due {instant(uncertain[-1].first)}"
        yield StatusWarning(WarningCode.UNCERTAIN, f"delivery of {occurrences(len(uncertain))} is unknown; {latest}")
