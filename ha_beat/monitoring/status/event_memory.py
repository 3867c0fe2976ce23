"""Events that a replica's status depends on."""

from __future__ import annotations

from collections import deque

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.monitoring.status.warnings import StatusWarning
from ha_beat.monitoring.wording import phrase
from ha_beat.reasons import WarningCode

#: Seconds for which a single incident is shown as a warning.
_INCIDENT_SHOWN = 3600.0

_MAX_FAILING = 20


class EventMemory:
    """Subscriber that keeps the current problems. Written by several threads, each value as a whole."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Why Redis does not answer the election; empty if it does.
        self.unreachable = ""
        #: Why this replica must not lead; empty if it may.
        self.forbidden = ""
        #: Failing entries with the reason.
        self.failing: dict[str, str] = {}
        #: True if the cluster should be polled at once. The poller clears it.
        self.poll_now = False
        self._incidents: deque[tuple[float, StatusWarning]] = deque(maxlen=20)

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.TermStarted() | events.LeaderSeen():
                # If a leader shows that this replica must not lead, that event follows.
                self.forbidden, self.poll_now = "", True
            case events.TermEnded():
                self.failing, self.poll_now = {}, True
            case events.ClockOffset():
                self.poll_now = True
            case events.LeaseUnreachable(detail=detail):
                self.unreachable, self.poll_now = detail, True
            case events.LeaseReachable():
                self.unreachable, self.poll_now = "", True
            case events.LeadingForbidden(detail=detail):
                self.forbidden = detail
            case events.EntryFailed(entry=entry, reason=reason, detail=detail):
                # The newest are kept: an entry that was deleted would never leave.
                others = {name: why for name, why in self.failing.items() if name != entry}
                kept = tuple(others.items())[1 - _MAX_FAILING :]
                self.failing = {**dict(kept), entry: phrase(reason, detail)[:200]}
            case events.Enqueued(entry=entry):
                self.failing.pop(entry, None)
            case events.InvariantBroken(rule=rule, subject=subject, detail=detail):
                self._add(WarningCode.INVARIANT_BROKEN, f"{phrase(rule)}: {subject}: {detail}")
            case events.StateLost(reason=reason):
                self._add(WarningCode.STATE_LOST, f"Redis lost data: {phrase(reason)}")
            case _:
                pass

    def incidents(self) -> list[StatusWarning]:
        """Return the incidents of the last hour."""
        since = self._clock.elapsed() - _INCIDENT_SHOWN
        return [warning for at, warning in tuple(self._incidents) if at >= since]

    def _add(self, code: WarningCode, message: str) -> None:
        self._incidents.append((self._clock.elapsed(), StatusWarning(code, message)))
