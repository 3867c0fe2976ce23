"""Upkeep of what a standby needs for a takeover."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat.duties import Duties
from ha_beat.reasons import Duty

#: Seconds between two calls of ``follow``.
_FOLLOW_INTERVAL = 1.0


class StandbyFollower:
    """Caller of ``follow``: about once a second, and when a term is first seen.

    An exception of ``follow`` does not stop the election.
    """

    def __init__(self, follow: Callable[[], None] | None, duties: Duties) -> None:
        self._follow = follow
        self._duties = duties
        self._follow_at = 0.0
        self._epoch = 0

    def follow(self, now: float, epoch: int) -> None:
        """Follow if it is due. ``now`` is on ``Clock.elapsed``, ``epoch`` the highest that this replica has seen."""
        # If Redis loses all data in a term's first second, only a standby that has seen the term can tell.
        if self._follow is None or (now < self._follow_at and epoch == self._epoch):  # guard: follow-new-term
            return
        self._follow_at, self._epoch = now + _FOLLOW_INTERVAL, epoch
        try:
            self._follow()
        except Exception as exc:
            # A standby that knows less of the past can still lead.
            self._duties.raised(Duty.FOLLOW_JOURNAL, exc)
        else:
            self._duties.done(Duty.FOLLOW_JOURNAL)
