"""State of the cluster as of the last poll, and the terms that the journal records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ha_beat.monitoring.status.unattended import NOTHING_UNATTENDED, Unattended
from ha_beat.reasons import TermEnd, TermStart
from ha_beat.store.journal import TermRecord, VerdictRecord
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView
from ha_beat.store.server_facts import ServerSettings


@dataclass(frozen=True, slots=True)
class TermSpan:
    """One term. Times are in ms since the Unix epoch, by the Redis server's clock.

    ``ended_ms`` is ``None`` for the current term. If the lease was not ``released``, it is the time of the leader's
    last renewal or verdict, the end lies between that and the next term, and ``end_reason`` is why the next term began.
    ``gap_ms`` is the longest possible time without a leader before the term. Reasons are ``None`` if unknown.
    """

    epoch: int
    by: str
    began_ms: int
    reason: TermStart | TermEnd | None
    ended_ms: int | None = None
    released: bool = False
    end_reason: TermStart | TermEnd | None = None
    end_detail: str = ""
    gap_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Result of the last poll. ``polled_at`` is on ``Clock.elapsed``; offsets and durations are in seconds.

    ``unreachable`` is why Redis did not answer, and empty if it did.
    """

    view: ClusterView | None = None
    polled_at: float = 0.0
    round_trip: float = 0.0
    clock_offset: float = 0.0
    unreachable: str = "Redis has not been asked yet"
    server: ServerSettings | None = None
    recent: tuple[VerdictRecord, ...] = ()
    terms: tuple[TermSpan, ...] = ()
    #: Names of stored records that cannot be read.
    unreadable: tuple[str, ...] = ()
    #: Entries that are due while no leader has loaded the schedule.
    unattended: Unattended = NOTHING_UNATTENDED

    @property
    def lease(self) -> LeaseRecord | None:
        return self.view.lease if self.view else None


def spans(
    records: Iterable[TermRecord], lease: LeaseRecord | None, last_verdicts: Mapping[int, int] | None = None
) -> tuple[TermSpan, ...]:
    """Return the terms of the journal's term records, oldest first.

    ``last_verdicts`` is the time of the last verdict, in ms, by epoch. It is often later than the last renewal.
    """
    last_verdicts = last_verdicts or {}
    found: list[TermSpan] = []
    for record in records:
        last = found[-1] if found else None
        if record.event == "acquired":
            gap = None
            if last is not None:
                if last.ended_ms is None:
                    left_ms = record.left_ms if record.previous_epoch == last.epoch else 0
                    left_ms = min(max(left_ms, last_verdicts.get(last.epoch, 0)), record.ms) or record.ms
                    last = found[-1] = replace(last, ended_ms=left_ms, end_reason=record.reason)
                gap = max(0, record.ms - (last.ended_ms or record.ms))
            found.append(TermSpan(record.epoch, record.by, record.ms, record.reason, gap_ms=gap))
        elif last is not None and last.epoch == record.epoch and last.ended_ms is None:
            found[-1] = replace(
                last, ended_ms=record.ms, released=True, end_reason=record.reason, end_detail=record.detail
            )
    if lease is not None and lease.held and (not found or found[-1].epoch != lease.epoch):
        # The journal's oldest record is newer than the term.
        found.append(TermSpan(lease.epoch, lease.holder, lease.since_ms, None))
    return tuple(found)
