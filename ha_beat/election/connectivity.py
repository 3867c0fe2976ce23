"""Reachability of the lease's Redis for this replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ha_beat import events
from ha_beat.clock import Clock

#: Commands of the election.
Command = Literal["observation", "campaign", "renewal", "release"]

#: Commands that write. A server that answers reads may still refuse these.
_WRITING: frozenset[Command] = frozenset({"campaign", "renewal", "release"})

#: Largest number of distinct reasons that are reported for one outage.
_REPORTED_REASONS = 10


class Connectivity:
    """Outages of Redis: each is reported once per reason, and its time is kept for the next takeover.

    Used by the election thread only. Instants are on ``Clock.elapsed``.
    """

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._emit = emit
        self._unreachable_since: float | None = None
        #: Commands that fail in the current outage, and the reasons that were reported.
        self._failing: set[Command] = set()
        self._reported: set[str] = set()
        #: When Redis was last found unreachable; ``None`` if it never was.
        self.lost_at: float | None = None
        #: When it was reachable again after that.
        self.back_at: float | None = None
        #: True if a loss of contact was noticed since the last acquisition.
        self._loss_known = False

    @property
    def reachable(self) -> bool:
        return self._unreachable_since is None

    def failed(self, command: Command, detail: str, *, leading: bool) -> None:
        """Record that Redis did not answer a command, or refused it."""
        now = self._clock.elapsed()
        if self._unreachable_since is None:
            self._unreachable_since = now
            self._lose(now)
            self._reported.clear()
        self._failing.add(command)
        if detail not in self._reported and len(self._reported) < _REPORTED_REASONS:
            self._reported.add(detail)
            self._emit(events.LeaseUnreachable(detail, leading))

    def succeeded(self, command: Command) -> None:
        """Record that a command succeeded. The outage ends when no kind of command fails any more."""
        if self._unreachable_since is None:
            return
        self._failing -= _WRITING if command in _WRITING else {command}
        if not self._failing:
            since, self._unreachable_since = self._unreachable_since, None
            self.back_at = self._clock.elapsed()
            self._emit(events.LeaseReachable(self.back_at - since))

    def presence_lost(self) -> None:
        """Record the end of the presence connection: the server may have restarted between two commands."""
        if self._unreachable_since is None:
            now = self._clock.elapsed()
            self._lose(now)
            self.back_at = now

    def acquired(self, *, server_changed: bool) -> None:
        """Record an acquisition. If the server changed unnoticed between two commands, the loss counts from now."""
        if server_changed and not self._loss_known:
            self.lost_at = self._clock.elapsed()
        self._loss_known = False

    def _lose(self, now: float) -> None:
        self.lost_at = now  # guard: contact-lost-at
        self._loss_known = True
