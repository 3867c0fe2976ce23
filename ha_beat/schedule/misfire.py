"""Misfire rules: which overdue occurrences of an entry are enqueued, and which are skipped."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ha_beat.reasons import MisfirePolicy, SkipReason
from ha_beat.schedule.recurrence import Recurrence

#: The most missed instants of an entry that are counted one by one, and the most that are caught up.
COUNT_CAP = 1000


@dataclass(frozen=True, slots=True)
class Skipped:
    """Due instants that get no message: from ``first`` up to, not including, ``until``.

    ``count`` is -1 if they are too many to count. ``detail`` is the text of an exception.
    """

    first: datetime
    until: datetime
    count: int
    reason: SkipReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision on the due instants of an entry: at most one to enqueue, and those to skip.

    ``position`` is the last instant that the decision covers. Without ``send`` there is always something ``skipped``.
    """

    send: datetime | None
    position: datetime
    skipped: Skipped | None = None


@dataclass(frozen=True, slots=True)
class MisfireRules:
    """Rules for overdue occurrences.

    ``grace`` is how many seconds late an occurrence may be enqueued; ``None`` means without limit. ``limit`` is the
    most occurrences that ``all`` catches up. ``usual_lateness`` is how late, in seconds, a change of leader may make an
    occurrence: up to that, it is not overdue for ``skip``.
    """

    policy: MisfirePolicy = MisfirePolicy.ONCE
    grace: float | None = None
    limit: int = 100
    usual_lateness: float = 11.0

    def decide(self, recurrence: Recurrence, first: datetime, now: datetime) -> Decision:
        """Decide on the instants from ``first``, which is due, up to ``now``.

        ``all`` decides on one instant per call, oldest first.
        """
        keep = self.limit if self.policy is MisfirePolicy.ALL else 1
        kept, count = newest_due(recurrence, first, now, keep)
        wanted = [instant for instant in kept if not self._too_late(instant, now)]
        if not wanted:
            latest = kept[-1]
            reason = SkipReason.MISSED if self.grace is None else SkipReason.MISFIRE_GRACE
            return Decision(None, latest, Skipped(first, recurrence.next_after(latest), count, reason))
        send = wanted[0]
        if send == first:
            return Decision(send, send)
        passed_over = count - len(wanted) if count > 0 else -1
        return Decision(
            send,
            send,
            Skipped(first, send, passed_over, self._skip_reason(kept, wanted)),  # guard: misfire-verdict
        )

    def _too_late(self, instant: datetime, now: datetime) -> bool:
        grace = self.grace
        if grace is None and self.policy is MisfirePolicy.SKIP:
            grace = self.usual_lateness
        return grace is not None and (now - instant).total_seconds() > grace

    def _skip_reason(self, kept: Sequence[datetime], wanted: Sequence[datetime]) -> SkipReason:
        if self.policy is MisfirePolicy.ONCE:
            return SkipReason.COALESCED
        if self.policy is MisfirePolicy.SKIP:
            return SkipReason.MISSED
        return SkipReason.MISFIRE_LIMIT if len(wanted) == len(kept) else SkipReason.MISFIRE_GRACE


def newest_due(recurrence: Recurrence, first: datetime, now: datetime, keep: int) -> tuple[list[datetime], int]:
    """Return the newest ``keep`` instants from ``first`` up to ``now``, oldest first, and how many there are in all.

    If they are too many to step through, search backwards from ``now``; the count may then be -1.
    """
    keep = min(keep, COUNT_CAP)
    kept = deque([first], maxlen=keep)
    count = 1
    while (following := recurrence.next_after(kept[-1])) <= now:
        kept.append(following)
        count += 1
        if count > COUNT_CAP:
            newest, more = recurrence.newest(following, now)
            kept = deque([newest])
            while len(kept) < keep and kept[0] > following:
                kept.appendleft(recurrence.newest(following, kept[0] - timedelta(microseconds=1))[0])
            return list(kept), count + more if more >= 0 else -1
    return list(kept), count
