"""What one look at the cluster brought."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ha_beat.monitoring.wording import phrase
from ha_beat.store.journal import TermRecord, VerdictRecord
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView, ServerSettings


@dataclass(frozen=True, slots=True)
class TermSpan:
    """One stretch of leadership, in ms since the Unix epoch by the Redis server's clock.

    ``ended_ms`` is ``None`` while it lasts, and where ``released`` is False the leader's last sign (a renewal or a
    verdict): the true end lies between it and the next term. ``gap_ms`` is the time for which nobody led before it, at
    most.
    """

    epoch: int
    by: str
    began_ms: int
    why: str
    ended_ms: int | None = None
    released: bool = False
    end_why: str = ""
    gap_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What the watcher's last look brought. ``looked_at`` is on ``Clock.elapsed``; offsets and times are in seconds."""

    view: ClusterView | None = None
    looked_at: float = 0.0
    round_trip: float = 0.0
    clock_offset: float = 0.0
    why_not: str = "Redis has not been asked yet"
    facts: ServerSettings | None = None
    recent: tuple[VerdictRecord, ...] = ()
    terms: tuple[TermSpan, ...] = ()


def spans(
    records: Iterable[TermRecord], lease: LeaseRecord | None, heard: Mapping[int, int] | None = None
) -> tuple[TermSpan, ...]:
    """The terms that the journal's changes of leader make up, oldest first.

    ``heard`` says by epoch when its leader last gave a verdict, in ms: often later than its last renewal.
    """
    heard = heard or {}
    found: list[TermSpan] = []
    for record in records:
        last = found[-1] if found else None
        if record.event == "acquired":
            gap = None
            if last is not None:
                if last.ended_ms is None:
                    left_ms = record.left_ms if record.previous_epoch == last.epoch else 0
                    left_ms = min(max(left_ms, heard.get(last.epoch, 0)), record.ms) or record.ms
                    last = found[-1] = replace(last, ended_ms=left_ms, end_why=phrase(record.reason, record.detail))
                gap = max(0, record.ms - (last.ended_ms or record.ms))
            found.append(TermSpan(record.epoch, record.by, record.ms, phrase(record.reason, record.detail), gap_ms=gap))
        elif last is not None and last.epoch == record.epoch and last.ended_ms is None:
            found[-1] = replace(last, ended_ms=record.ms, released=True, end_why=phrase(record.reason, record.detail))
    if lease is not None and lease.held and (not found or found[-1].epoch != lease.epoch):
        found.append(TermSpan(lease.epoch, lease.holder, lease.since_ms, "before the journal's oldest record"))
    return tuple(found)
