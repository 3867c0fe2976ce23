"""Memory of the events that a replica's status shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.monitoring.logs import line_of
from ha_beat.monitoring.status.warnings import StatusWarning
from ha_beat.monitoring.wording import phrase
from ha_beat.reasons import WarningCode

#: Seconds for which a single incident is shown as a warning.
_INCIDENT_SHOWN = 3600.0

_MAX_FAILING = 20

#: Problems that the status reads elsewhere: from the journal, the lease, a member record or a duty.
_SHOWN_ELSEWHERE = (
    events.TermEnded,
    events.LeaseUnreachable,
    events.LeadingForbidden,
    events.OccurrenceSkipped,
    events.OccurrenceUncertain,
    events.EntryFailed,
    events.StateLost,
    events.InvariantBroken,
    events.ClockOffset,
    events.DutyLate,
    events.RecordUnreadable,
)

#: Events after which the poller must read the cluster again.
_CHANGES = (
    events.TermStarted,
    events.TermEnded,
    events.LeaderSeen,
    events.LeaseUnreachable,
    events.LeaseReachable,
    events.ClockOffset,
    events.ScheduleReady,
)


class EventMemory:
    """Subscriber that keeps the current problems. Several threads write it, each value as a whole."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Why Redis does not answer the election; empty if it does.
        self.unreachable = ""
        #: Why this replica must not lead; empty if it may.
        self.forbidden = ""
        #: Failing entries with the reason.
        self.failing: dict[str, str] = {}
        #: Time on ``Clock.elapsed`` until which this term waits on purpose before it loads the schedule.
        self.held_until = 0.0
        #: Makes the poller read the cluster immediately.
        self.poll_now: Callable[[], None] = lambda: None
        self._incidents: deque[tuple[float, StatusWarning]] = deque(maxlen=20)
        #: Newest event of each other kind of problem.
        self._problems: dict[str, tuple[float, events.Event]] = {}

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Enqueued):
            # The first case, because this event is by far the most frequent.
            self.failing.pop(event.entry, None)
            return
        if event.problem and not isinstance(event, _SHOWN_ELSEWHERE):
            self._problems[event.action] = self._clock.elapsed(), event
        if isinstance(event, _CHANGES):
            self.poll_now()
        match event:
            case events.TermStarted() | events.LeaderSeen():
                # If this replica still must not lead, another event reports it.
                self.forbidden = ""
            case events.TermEnded():
                self.failing, self.held_until = {}, 0.0
            case events.DispatchHeld(seconds=seconds):
                self.held_until = self._clock.elapsed() + seconds
            case events.LeaseUnreachable(detail=detail):
                self.unreachable = detail
            case events.LeaseReachable():
                self.unreachable = ""
            case events.LeadingForbidden(detail=detail):
                self.forbidden = detail
            case events.EntryFailed(entry=entry, reason=reason, detail=detail):
                # Only the newest are kept, because a deleted entry would never be removed.
                others = {name: why for name, why in self.failing.items() if name != entry}
                kept = tuple(others.items())[1 - _MAX_FAILING :]
                self.failing = {**dict(kept), entry: phrase(reason, detail)[:200]}
            case events.InvariantBroken(rule=rule, subject=subject, detail=detail):
                self._add(WarningCode.INVARIANT_BROKEN, f"{phrase(rule)}: {subject}: {detail}")
            case events.StateLost(reason=reason):
                self._add(WarningCode.STATE_LOST, f"Redis lost data: {phrase(reason)}")

    def incidents(self) -> list[StatusWarning]:
        """Return the incidents of the last hour."""
        since = self._clock.elapsed() - _INCIDENT_SHOWN
        found = [warning for at, warning in tuple(self._incidents) if at >= since]
        recent = [event for at, event in tuple(self._problems.values()) if at >= since]
        return found + [StatusWarning(WarningCode.INCIDENT, _words(event), "notice") for event in recent]

    def _add(self, code: WarningCode, message: str) -> None:
        self._incidents.append((self._clock.elapsed(), StatusWarning(code, message)))


def _words(event: events.Event) -> str:
    if isinstance(event, events.DispatchFailed | events.LedgerReadFailed):
        # Only the first failure of a series has a line.
        event = replace(event, tries=1)
    line = line_of(event, "")
    return line[1] % line[2] if line else event.action
