"""Misfire rules: which overdue occurrences of an entry are enqueued, and which are skipped."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

from ha_beat.reasons import MisfirePolicy, SkipReason
from ha_beat.schedule.occurrence import FOREVER
from ha_beat.schedule.recurrence import Recurrence

#: Most missed instants of an entry that are caught up.
CATCH_UP_CAP = 1000

#: Least grace in seconds. Every occurrence is enqueued a few milliseconds late, so a shorter grace may skip all.
LEAST_GRACE = 0.1

#: Most instants that are stepped through before the search goes backwards.
_STEPS = 100


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
class DueInstants:
    """Due instants of one entry from ``first`` to ``newest``. The newest ``kept`` of them begin with ``oldest``.

    ``passed_over`` is the number of those before ``oldest``, or -1 if they are too many to count.
    """

    first: datetime
    oldest: datetime
    newest: datetime
    kept: int = 1
    passed_over: int = 0

    @property
    def count(self) -> int:
        """Return the number of the instants, or -1."""
        return -1 if self.passed_over < 0 else self.passed_over + self.kept


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

    @property
    def keep(self) -> int:
        """Return the number of the newest due instants that may be enqueued."""
        return self.limit if self.policy is MisfirePolicy.ALL else 1

    def decide(self, recurrence: Recurrence, due: DueInstants, now: datetime) -> Decision:
        """Decide on due instants, found with :attr:`keep`. ``all`` decides on one instant per call, oldest first."""
        first, send, late = due.first, due.oldest, 0
        while self._too_late(send, now):
            if send >= due.newest:
                reason = SkipReason.MISSED if self.grace is None else SkipReason.MISFIRE_GRACE
                return skip_all(recurrence, due, reason)
            send, late = recurrence.next_after(send), late + 1
        if send == first:
            return Decision(send, send)
        passed_over = due.passed_over + late if due.passed_over >= 0 else -1
        return Decision(
            send,
            send,
            Skipped(first, send, passed_over, self._skip_reason(late)),  # guard: misfire-verdict
        )

    def _too_late(self, instant: datetime, now: datetime) -> bool:
        grace = self.grace
        if grace is None and self.policy is MisfirePolicy.SKIP:
            grace = self.usual_lateness
        return grace is not None and (now - instant).total_seconds() > grace

    def _skip_reason(self, late: int) -> SkipReason:
        if self.policy is MisfirePolicy.ONCE:
            return SkipReason.COALESCED
        if self.policy is MisfirePolicy.SKIP:
            return SkipReason.MISSED
        return SkipReason.MISFIRE_GRACE if late else SkipReason.MISFIRE_LIMIT


def skip_all(recurrence: Recurrence, due: DueInstants, reason: SkipReason) -> Decision:
    """Skip all due instants."""
    following = recurrence.next_after(due.newest)
    until = following if following < FOREVER else due.newest + timedelta(microseconds=1)
    return Decision(None, due.newest, Skipped(due.first, until, due.count, reason))


def newest_due(
    recurrence: Recurrence, first: datetime, now: datetime, keep: int, known: DueInstants | None = None
) -> DueInstants:
    """Return the instants from ``first``, which is due, up to ``now``, with the newest ``keep`` of them.

    ``known`` is the result of an earlier call for the same recurrence, from which the search continues. If the instants
    are too many to step through, the search goes backwards from ``now``.
    """
    if known is None and recurrence.next_after(first) > now:
        return DueInstants(first, first, first)
    keep = min(keep, CATCH_UP_CAP)
    continued = _continued(known, recurrence, first, now, keep) if known is not None else None
    return continued or _counted(recurrence, first, now, keep) or _from_behind(recurrence, first, now, keep)


def _continued(
    known: DueInstants, recurrence: Recurrence, first: datetime, now: datetime, keep: int
) -> DueInstants | None:
    """Return the instants with those since ``known``, or ``None`` if ``known`` does not fit or is far behind."""
    oldest, newest, kept, passed_over = known.oldest, known.newest, known.kept, known.passed_over
    if newest > now:
        # The clock was set back.
        return None
    if first != known.first:
        passed_over = 0
        if first != oldest:
            oldest, kept = recurrence.next_after(oldest), kept - 1
        if first != oldest or not kept:
            return None
    for _ in range(_STEPS):
        following = recurrence.next_after(newest)
        if following > now:
            return DueInstants(first, oldest, newest, kept, passed_over)
        newest, kept = following, kept + 1
        if kept > keep:
            oldest, kept = recurrence.next_after(oldest), kept - 1
            passed_over += passed_over >= 0
    return None


def _counted(recurrence: Recurrence, first: datetime, now: datetime, keep: int) -> DueInstants | None:
    """Step through the instants. Return ``None`` if they are too many."""
    found = deque([first], maxlen=keep)
    for passed in range(1 - keep, _STEPS - keep):
        following = recurrence.next_after(found[-1])
        if following > now:
            return DueInstants(first, found[0], found[-1], len(found), max(passed, 0))
        found.append(following)
    return None


def _from_behind(recurrence: Recurrence, first: datetime, now: datetime, keep: int) -> DueInstants:
    """Search the newest instants backwards from ``now``."""
    newest, more = recurrence.newest(first, now)
    found, span = deque([newest], maxlen=keep), timedelta(seconds=1)
    while len(found) < keep and found[0] > first:
        # The start of a span twice as long, from which to step forward.
        found = deque([recurrence.newest(first, max(first, now - span))[0]], maxlen=keep)
        while found[-1] < newest:
            found.append(recurrence.next_after(found[-1]))
        span *= 2
    return DueInstants(first, found[0], newest, len(found), more + 1 - len(found) if more >= 0 else -1)
