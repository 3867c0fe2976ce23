"""Which instants of the past an entry may be enqueued for once more, by what the journal knows of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ha_beat.schedule.occurrence import Instants
from ha_beat.schedule.recurrence import first_from
from ha_beat.store.journal import VerdictRecord


@dataclass(frozen=True, slots=True)
class Instant:
    """One due instant of a backfill, numbered from 1, and what is to become of it."""

    number: int
    at: datetime
    state: Literal["would enqueue", "enqueued", "refused", "needs force", "uncertain", "failed"]
    why: str = ""


def due_between(instants: Instants, base: datetime, since: datetime, until: datetime) -> Iterator[datetime]:
    """The due instants from ``since`` on and before ``until``, in UTC; ``base`` is one that is known."""
    at = first_from(instants, base, since)
    while at < until:
        yield at
        at = instants.next_after(at)


def judged(
    instants: Sequence[datetime], base: datetime, known: Sequence[VerdictRecord], request: str, *, force: bool
) -> list[Instant]:
    """Whether each may be enqueued. ``base`` is the entry's position, ``known`` the journal's records of it."""
    return [_judge(number, at, base, known, request, force=force) for number, at in enumerate(instants, 1)]


def _judge(
    number: int, at: datetime, base: datetime, known: Sequence[VerdictRecord], request: str, *, force: bool
) -> Instant:
    if at > base:
        return Instant(number, at, "refused", "the schedule has yet to come to it")
    about = [record for record in known if record.covers(at)]
    for record in about:
        if record.verdict == "enqueued":
            if record.data.get("request") == request:
                return Instant(number, at, "enqueued", "by this request, under an earlier leader")
            return Instant(number, at, "refused", f"it was enqueued at {record.written_at} as {record.task_id}")
    if force or (about and all(record.verdict == "skipped" for record in about)):
        return Instant(number, at, "would enqueue")
    if about:
        return Instant(number, at, "needs force", "nobody knows whether it was enqueued")
    return Instant(number, at, "needs force", "the journal does not know of it")
