"""What a person should look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ha_beat.monitoring.request_wording import pause_text
from ha_beat.monitoring.status.snapshot import Look
from ha_beat.monitoring.wording import health
from ha_beat.reasons import WarningCode
from ha_beat.store.journal import VerdictRecord
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import Member
from ha_beat.store.request_queue import Pause

#: Seconds that a clock may be away from the Redis server's before it is said.
_CLOCK_TOLERANCE = 2.0

#: Seconds for which a due occurrence may wait for its verdict before it is said.
_OVERDUE_TOLERANCE = 30.0


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that a person should look at. ``level`` is ``warning`` or ``notice``."""

    code: WarningCode
    message: str
    level: str = "warning"


def of_redis(look: Look, why_unreachable: str) -> Iterable[Warn]:
    if why_unreachable:
        yield Warn(WarningCode.REDIS_UNREACHABLE, f"Redis can't be reached: {why_unreachable}")
    if look.facts is not None and look.facts.eviction_policy.startswith("allkeys"):
        yield Warn(
            WarningCode.EVICTION_POLICY,
            f"Redis may evict the lease and the ledger: its maxmemory-policy is {look.facts.eviction_policy}",
        )
    if look.view is not None and look.view.paused:
        words = pause_text(Pause.parse(look.view.paused))
        yield Warn(WarningCode.PAUSED, f"the cluster is paused {words}", "notice")


def of_lease(lease: LeaseRecord | None, now_ms: int) -> Iterable[Warn]:
    """As a standby sees it; ``now_ms`` is by the Redis server's clock."""
    if lease is None or not lease.held:
        yield Warn(WarningCode.NO_LEADER, "nobody leads")
    elif not lease.leads(now_ms):
        age = lease.silent_ms(now_ms) / 1000
        yield Warn(WarningCode.NO_LEADER, f"{lease.holder} holds the lease, but has not renewed it for {age:.1f} s")


def of_members(members: Sequence[Member]) -> Iterable[Warn]:
    for each in members:
        offset = each.clock_offset_ms / 1000
        if abs(offset) > _CLOCK_TOLERANCE:
            side = "ahead of" if offset > 0 else "behind"
            yield Warn(WarningCode.CLOCK_OFFSET, f"{each.id}: its clock is {abs(offset):.1f} s {side} Redis'")
        yield from (Warn(WarningCode.NOT_READY, f"{each.id}: {why}") for why in health(each.not_ready))
        yield from (Warn(WarningCode.ENTRY_FAILING, f"{entry}: {why}") for entry, why in each.failing.items())
        if each.overdue_ms > _OVERDUE_TOLERANCE * 1000:
            yield Warn(WarningCode.OVERDUE, f"the oldest due occurrence has waited for {each.overdue_ms / 1000:.0f} s")
    if len({each.schedule for each in members if each.schedule}) > 1:
        yield Warn(WarningCode.SCHEDULE_DRIFT, "the replicas have different schedules; normal only during a deploy")
    if len({each.version for each in members}) > 1:
        yield Warn(WarningCode.VERSION_MIX, "the replicas run different versions of ha_beat", "notice")


def of_verdicts(recent: Sequence[VerdictRecord]) -> Iterable[Warn]:
    enqueued = {(record.entry, record.first) for record in recent if record.verdict == "enqueued"}
    uncertain = [
        record
        for record in recent
        if record.verdict == "uncertain" and (record.entry, record.first) not in enqueued  # confirmed late
    ]
    if uncertain:
        latest = uncertain[-1]
        what = f"{len(uncertain)} occurrences, the latest of {latest.entry} at {latest.first.isoformat()}"
        yield Warn(WarningCode.UNCERTAIN, f"nobody knows whether they were enqueued: {what}")
