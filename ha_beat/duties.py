"""Duties of a replica: what it must do again and again, when each was last done, and why one is late.

The code that does a duty reports each completion and each failure. The watchdog calls :meth:`Duties.check` twice a
second. It emits an event when a duty becomes late, more events at growing intervals, and one when the duty is done
again. Health, status and metrics call :meth:`Duties.late` themselves, so that they do not depend on a blocked log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.errors import StoreError, StoreRefused
from ha_beat.exception_text import exception_line
from ha_beat.reasons import Duty, DutyFault

#: Seconds until the second report of a duty that stays late, and the longest time between two reports.
_FIRST_INTERVAL = 60.0
_LONGEST_INTERVAL = 3600.0

_NEVER_LATE = float("inf")

#: A duty that is done again within these seconds is not recorded again. Some are done many times a second.
_RESOLUTION = 0.5


@dataclass(frozen=True, slots=True)
class LateDuty:
    """Late duty. ``seconds`` is the time since it was last done, made progress, or was first expected."""

    reason: DutyFault
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _State:
    """State of one duty. Times are on ``Clock.elapsed``.

    ``since`` is when the duty was last done, made progress, or was first expected. The duty is late after a failure
    (``reason``), and without a failure after ``within`` seconds.
    """

    since: float
    within: float = _NEVER_LATE
    done: bool = False
    reason: DutyFault | None = None
    detail: str = ""
    exc: BaseException | None = None

    def late(self, now: float) -> LateDuty | None:
        seconds = now - self.since
        if self.reason is not None:
            return LateDuty(self.reason, self.detail, seconds)
        return LateDuty(DutyFault.OVERDUE, "", seconds) if seconds > self.within else None


@dataclass(frozen=True, slots=True)
class _Report:
    """Reports of a late duty: when it became late, the reported reasons, and when the next report is due."""

    since: float
    reasons: frozenset[DutyFault] = frozenset()
    next_at: float = 0.0
    interval: float = _FIRST_INTERVAL


class Duties:
    """Duties of one replica. The thread that does a duty replaces the duty's state as a whole, so no lock is needed."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._emit = emit
        self._states: dict[Duty, _State] = {}
        #: Used by :meth:`check` only.
        self._reports: dict[Duty, _Report] = {}

    # --- For the code that does a duty

    def expect(self, duty: Duty, within: float = _NEVER_LATE) -> None:
        """Expect the duty from now on, at least once every ``within`` seconds."""
        if duty not in self._states:
            self._states[duty] = _State(self._clock.elapsed(), within)

    def done(self, duty: Duty) -> None:
        """Record that the duty was done."""
        state, now = self._states.get(duty), self._clock.elapsed()
        if state is None or not state.done or state.reason is not None or now - state.since >= _RESOLUTION:
            self._states[duty] = _State(now, _NEVER_LATE if state is None else state.within, done=True)

    def progressed(self, duty: Duty) -> None:
        """Record progress of an attempt. A long attempt that makes progress is not overdue."""
        state = self._states.get(duty)
        if state is not None:
            self._states[duty] = replace(state, since=self._clock.elapsed())

    def failed(self, duty: Duty, reason: DutyFault, detail: str = "", exc: BaseException | None = None) -> None:
        """Record that the duty could not be done. ``exc`` is given for an unexpected exception only."""
        self.expect(duty)
        state = self._states.get(duty) or _State(self._clock.elapsed())
        self._states[duty] = replace(state, reason=reason, detail=detail, exc=exc)

    def raised(self, duty: Duty, exc: Exception) -> None:
        """Record that an exception ended an attempt."""
        if isinstance(exc, StoreError):
            refused = isinstance(exc, StoreRefused)
            self.failed(duty, DutyFault.REFUSED if refused else DutyFault.UNREACHABLE, str(exc))
        else:
            self.failed(duty, DutyFault.FAILED, exception_line(exc), exc)

    def suspend(self, duty: Duty) -> None:
        """No longer expect the duty, for example because the replica's role changed."""
        self._states.pop(duty, None)

    # --- For readers

    def known(self) -> tuple[Duty, ...]:
        """Return the duties that are expected now."""
        return tuple(self._states)

    def ever_done(self, duty: Duty) -> bool:
        """True if the duty was done at least once since it is expected."""
        state = self._states.get(duty)
        return state is not None and state.done

    def late(self) -> Mapping[Duty, LateDuty]:
        """Return the duties that are late."""
        now = self._clock.elapsed()
        found = {duty: state.late(now) for duty, state in tuple(self._states.items())}
        return {duty: late for duty, late in found.items() if late is not None}

    # --- For the watchdog

    def check(self) -> None:
        """Emit the duties that became late or were done again, and, at intervals, those that are still late."""
        now, states = self._clock.elapsed(), dict(self._states)
        for duty, state in states.items():
            late = state.late(now)
            if late is None:
                continue
            report = self._reports.get(duty) or _Report(now - late.seconds)
            if late.reason not in report.reasons or now >= report.next_at:
                self._emit(events.DutyLate(duty, late.reason, late.seconds, late.detail, state.exc))
                self._reports[duty] = _Report(
                    report.since,
                    report.reasons | {late.reason},
                    now + report.interval,
                    min(2 * report.interval, _LONGEST_INTERVAL),
                )
        for duty, report in tuple(self._reports.items()):
            if duty not in states or states[duty].late(now) is None:
                del self._reports[duty]
                if duty in states:
                    self._emit(events.DutyResumed(duty, now - report.since))
