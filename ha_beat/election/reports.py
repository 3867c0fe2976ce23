"""Reports of the election: each change is reported once, and every campaign and renewal."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.election.states import Action, Campaign, Campaigned, Forbidden, Outcome, Renew, Renewal
from ha_beat.reasons import ForbiddenReason, LeaseAction, LeaseOutcome
from ha_beat.store.lease import Acquired, LeaseRecord, LeaseView, Lost, Refused, Renewed, Replica


class ElectionReports:
    """Reporter of the election. A leader, an obstacle or a failure is reported if it differs from the last one."""

    def __init__(self, replica: Replica, emit: Callable[[events.Event], None]) -> None:
        self._replica = replica
        self._emit = emit
        #: Holder and epoch of the leader that was reported last, and epoch and ``seq`` of the lease as last seen.
        self._leader = ("", 0)
        self._renewal = (0, 0)
        self._forbidden: Forbidden | None = None
        self._failing = False

    def attempted(self, action: Action, outcome: Outcome | None, seconds: float) -> None:
        """Report a campaign or a renewal. Each one is reported."""
        if isinstance(action, Campaign | Renew):
            kind = LeaseAction.CAMPAIGN if isinstance(action, Campaign) else LeaseAction.RENEWAL
            self._emit(events.LeaseAttempted(kind, _lease_outcome(outcome), seconds))

    def leader_seen(self, view: LeaseView) -> bool:
        """Report a change of leader. Return True if another replica has renewed the lease since the last call.

        A leader that runs another app is reported immediately, not only when this replica campaigns.
        """
        record, own = view.record, self._replica
        if record is None or not record.held or record.holder == own.id:
            return False
        renewed, self._renewal = (record.epoch, record.seq) != self._renewal, (record.epoch, record.seq)
        if (record.holder, record.epoch) != self._leader:
            self._leader = (record.holder, record.epoch)
            self._emit(events.LeaderSeen(record.holder, record.epoch))
            self._forbidden = None
            if record.fingerprint not in {"", own.fingerprint}:
                self.forbidden(Forbidden(ForbiddenReason.OTHER_APP, _other_app(record, own)))
        return renewed

    def led(self) -> None:
        """Forget the leader that was seen before this replica led, so that it is reported again."""
        self._leader = ("", 0)

    def forbidden(self, outcome: Forbidden) -> None:
        """Report that this replica must not lead."""
        if outcome != self._forbidden:
            self._forbidden = outcome
            self._emit(events.LeadingForbidden(outcome.reason, outcome.detail))

    def failed(self, detail: str, *, again: bool) -> None:
        """Report an exception in the election. Of a series only the first is reported, unless ``again``."""
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


def _lease_outcome(outcome: Outcome | None) -> LeaseOutcome:
    match outcome:
        case Campaigned(answer=Acquired()):
            return LeaseOutcome.WON
        case Campaigned(answer=Refused()):
            return LeaseOutcome.REFUSED
        case Forbidden():
            return LeaseOutcome.FORBIDDEN
        case Renewal(answer=Renewed()):
            return LeaseOutcome.RENEWED
        case Renewal(answer=Lost()):
            return LeaseOutcome.LOST
        case Renewal():
            return LeaseOutcome.LATE
        case _:
            return LeaseOutcome.UNKNOWN
