"""Occurrences: which instants of an entry are due, what they are called, and what becomes of missed ones."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

MisfirePolicy = Literal["once", "skip", "all"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/ha-beat/occurrence")

#: Later than any due instant: an entry whose next instant this is has none any more.
FOREVER = datetime(9000, 1, 1, tzinfo=UTC)

#: Beyond so many missed instants of one entry they are no longer counted one by one; nor are more caught up.
COUNT_CAP = 1000


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One due instant of one entry. ``scheduled_at`` is in UTC."""

    entry: str
    scheduled_at: datetime

    @property
    def instant(self) -> str:
        """ISO 8601, always with microseconds: one spelling for one instant."""
        return self.scheduled_at.isoformat(timespec="microseconds")  # guard: instant-spelling

    def task_id(self, cluster: str) -> str:
        """The same for whoever enqueues this occurrence."""
        return str(uuid.uuid5(_NAMESPACE, f"{cluster}\n{self.entry}\n{self.instant}"))  # guard: occurrence-task-id


class Instants(Protocol):
    """The due instants of one entry, in UTC."""

    def next_after(self, instant: datetime) -> datetime:
        """The due instant that follows a due instant; ``FOREVER`` where none does."""
        ...

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        """The newest due instant from ``known``, which is one, up to ``now``, and how many follow ``known``.

        Must not step through them; -1 where they can't be counted without.
        """
        ...


def origin(instants: Instants | None, now: datetime) -> datetime:
    """What an entry that begins, or goes on again, at ``now`` is counted from.

    That is ``now`` itself, unless the instants know better by a method ``origin``: one not after ``now``, without a due
    instant between.
    """
    own: Any = getattr(instants, "origin", None)
    return now if own is None else own(now)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Due instants that get no message: from ``first`` up to, not including, ``until``.

    ``count`` is -1 where they were too many to count.
    """

    first: datetime
    until: datetime
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done about an entry now: at most one instant to enqueue, and those that are passed over.

    ``position`` is the last instant that this settles.
    """

    send: datetime | None
    position: datetime
    skipped: Skipped | None = None


@dataclass(frozen=True, slots=True)
class Misfire:
    """What becomes of occurrences found overdue.

    ``grace`` is how many seconds late an occurrence may still be enqueued, ``None`` for any lateness. ``limit`` is the
    most that ``all`` catches up. ``usual_lateness`` is what a change of leader may cost: less than that is no misfire.
    """

    policy: MisfirePolicy = "once"
    grace: float | None = None
    limit: int = 100
    usual_lateness: float = 11.0

    def settle(self, instants: Instants, first: datetime, now: datetime) -> Due:
        """Decide on the instants from ``first``, which is due, up to ``now``.

        ``all`` settles one instant a call, oldest first.
        """
        keep = self.limit if self.policy == "all" else 1
        kept, count = newest_due(instants, first, now, keep)
        wanted = [instant for instant in kept if not self._too_late(instant, now)]
        if not wanted:
            latest = kept[-1]
            reason = "missed" if self.grace is None else "misfire_grace"
            return Due(None, latest, Skipped(first, instants.next_after(latest), count, reason))
        send = wanted[0]
        if send == first:
            return Due(send, send)
        passed_over = count - len(wanted) if count > 0 else -1
        return Due(
            send,
            send,
            Skipped(first, send, passed_over, self._why_passed_over(kept, wanted)),  # guard: misfire-verdict
        )

    def _too_late(self, instant: datetime, now: datetime) -> bool:
        grace = self.grace
        if grace is None and self.policy == "skip":
            grace = self.usual_lateness
        return grace is not None and (now - instant).total_seconds() > grace

    def _why_passed_over(self, kept: Sequence[datetime], wanted: Sequence[datetime]) -> str:
        if self.policy != "all":
            return "coalesced" if self.policy == "once" else "missed"
        return "misfire_limit" if len(wanted) == len(kept) else "misfire_grace"


def newest_due(instants: Instants, first: datetime, now: datetime, keep: int) -> tuple[list[datetime], int]:
    """The newest ``keep`` instants from ``first`` up to ``now``, oldest first, and how many there were in all.

    Where they are too many to step through, they are looked for from behind, and the count may be -1.
    """
    keep = min(keep, COUNT_CAP)
    kept = deque([first], maxlen=keep)
    count = 1
    while (following := instants.next_after(kept[-1])) <= now:
        kept.append(following)
        count += 1
        if count > COUNT_CAP:
            newest, more = instants.newest(following, now)
            kept = deque([newest])
            while len(kept) < keep and kept[0] > following:
                kept.appendleft(instants.newest(following, kept[0] - timedelta(microseconds=1))[0])
            return list(kept), count + more if more >= 0 else -1
    return list(kept), count
