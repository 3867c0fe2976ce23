"""Whether Redis is in reach, since when, and when it was last found away: said once, and asked after a takeover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ha_beat import events
from ha_beat.clock import Clock

#: What is asked of the lease.
Command = Literal["observation", "campaign", "renewal", "release"]

#: Commands that write; what can be read may still refuse these.
_WRITING: frozenset[Command] = frozenset({"campaign", "renewal", "release"})

#: So many different reasons are told of one outage.
_REASONS_TOLD = 10


class Contact:
    """Of one replica with the lease's Redis. Used by the elector's thread only; instants are on ``Clock.elapsed``."""

    def __init__(self, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._clock = clock
        self._emit = emit
        self._away_since: float | None = None
        #: Of the outage under way: the commands that fail, and the reasons told.
        self._failing: set[Command] = set()
        self._told: set[str] = set()
        #: When Redis was last found to be away; ``None`` where it never was.
        self.lost_at: float | None = None
        #: When it was back in reach then.
        self.back_at: float | None = None
        #: Whether this replica knows why the server may be another one than at its last acquisition.
        self._break_known = False

    @property
    def in_reach(self) -> bool:
        return self._away_since is None

    def failed(self, command: Command, why: str, *, leading: bool) -> None:
        """Redis did not answer, or refused."""
        now = self._clock.elapsed()
        if self._away_since is None:
            self._away_since = now
            self._lose(now)
            self._told.clear()
        self._failing.add(command)
        if why not in self._told and len(self._told) < _REASONS_TOLD:
            self._told.add(why)
            self._emit(events.LeaseUnreachable(why, leading))

    def succeeded(self, command: Command) -> None:
        """This went well: the outage is over if nothing else of it is left to go well."""
        if self._away_since is None:
            return
        self._failing -= _WRITING if command in _WRITING else {command}
        if not self._failing:
            since, self._away_since = self._away_since, None
            self.back_at = self._clock.elapsed()
            self._emit(events.LeaseReachable(self.back_at - since))

    def broke(self) -> None:
        """The connection that carries presence has ended: perhaps a restart so short that no command fell into it."""
        if self._away_since is None:
            now = self._clock.elapsed()
            self._lose(now)
            self.back_at = now

    def acquired(self, *, server_changed: bool) -> None:
        """The lease was had. A server that changed unseen, between two calls, is lost now."""
        if server_changed and not self._break_known:
            self.lost_at = self._clock.elapsed()
        self._break_known = False

    def _lose(self, now: float) -> None:
        self.lost_at = now  # guard: contact-lost-at
        self._break_known = True
