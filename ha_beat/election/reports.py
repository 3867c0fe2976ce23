"""Reports of the election, each made once per change."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.duties import Duties
from ha_beat.election.states import Forbidden
from ha_beat.reasons import Duty, ForbiddenReason
from ha_beat.store.lease import LeaseRecord, LeaseView, Replica

#: Seconds between two calls of ``follow``.
_FOLLOW_INTERVAL = 1.0


class ElectionReports:
    """Emits an event when the leader, an obstacle or a failure is another than the last one reported."""

    def __init__(self, emit: Callable[[events.Event], None]) -> None:
        self._emit = emit
        self._holder = ("", 0)
        self._renewal = (0, 0)
        self._forbidden: Forbidden | None = None
        self._failing = False

    def leader_seen(self, view: LeaseView, replica: Replica) -> bool:
        """Report a change of leader. Return True if another replica has renewed the lease since the last call.

        A leader that runs another app is reported at once, and not only when this replica campaigns.
        """
        record = view.record
        if record is None or not record.held or record.holder == replica.id:
            return False
        renewed, self._renewal = (record.epoch, record.seq) != self._renewal, (record.epoch, record.seq)
        if (record.holder, record.epoch) != self._holder:
            self._holder = (record.holder, record.epoch)
            self._emit(events.LeaderSeen(record.holder, record.epoch))
            self._forbidden = None
            if record.fingerprint not in {"", replica.fingerprint}:
                self.forbidden(Forbidden(ForbiddenReason.OTHER_APP, _other_app(record, replica)))
        return renewed

    def led(self) -> None:
        """Forget the leader seen before this replica led, so that it is reported again."""
        self._holder = ("", 0)

    def forbidden(self, outcome: Forbidden) -> None:
        """Report that this replica must not lead."""
        if outcome != self._forbidden:
            self._forbidden = outcome
            self._emit(events.LeadingForbidden(outcome.reason, outcome.detail))

    def failed(self, detail: str, *, again: bool) -> None:
        """Report an exception in the election, the first of a series only unless ``again``."""
        if again or not self._failing:
            self._failing = True
            self._emit(events.ElectionFailed(detail))

    def works(self) -> None:
        """End a series of failures."""
        self._failing = False


def _other_app(leader: LeaseRecord, replica: Replica) -> str:
    return (
        f"the leader's app is {leader.fingerprint!r}, this one is {replica.fingerprint!r}. Give each app its own name "
        f"with ha_beat_cluster"
    )


class StandbyFollower:
    """Calls ``follow`` about once a second, and when a term is first seen. A failure does not disturb the election."""

    def __init__(self, follow: Callable[[], None] | None, duties: Duties) -> None:
        self._follow = follow
        self._duties = duties
        self._follow_at = 0.0
        self._epoch = 0

    def follow(self, now: float, epoch: int) -> None:
        """Follow if it is due. ``now`` is on ``Clock.elapsed``, ``epoch`` the highest that this replica has seen."""
        # If all is lost in its first second, only a standby that knows of the first leader can tell.
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
