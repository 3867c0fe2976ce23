"""Upkeep of the connection by which Redis knows that this process is alive."""

from __future__ import annotations

from collections.abc import Callable

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.election.connectivity import Connectivity
from ha_beat.election.states import PresenceBroke, PresenceReady, Woken
from ha_beat.reasons import Duty, DutyFault
from ha_beat.store.presence import Presence, PresenceError

#: Seconds between attempts to subscribe again.
_REOPEN_INTERVAL = 1.0

#: Longest time in seconds of a wait without a connection, which nothing ends early.
_SLICE = 0.1


class PresenceKeeper:
    """Keeper of the presence connection: it opens it, waits on it, reports its loss and then opens it again."""

    def __init__(
        self,
        presence: Presence,
        connectivity: Connectivity,
        clock: Clock,
        emit: Callable[[events.Event], None],
        duties: Duties,
    ) -> None:
        self._presence = presence
        self._connectivity = connectivity
        self._clock = clock
        self._emit = emit
        self._duties = duties
        self._reopen_at = 0.0
        self._failed_once = False

    @property
    def channel(self) -> str:
        """Return the channel now subscribed, or ``""``."""
        return self._presence.channel

    def wait(self, seconds: float, *, leading: bool) -> PresenceBroke | PresenceReady | Woken | None:
        """Wait on the connection for a wake message, or open it if there is none."""
        if not self._presence.channel:
            return self._open(min(seconds, _SLICE))
        try:
            woken = self._presence.wait(seconds)
        except PresenceError as exc:
            self._reopen_at = 0.0
            self._connectivity.presence_lost()
            if leading:
                self._emit(events.PresenceLost(str(exc)))
            return PresenceBroke()
        self._duties.done(Duty.PRESENCE)
        return Woken() if woken else None

    def wake(self) -> None:
        """End the current or the next wait on the connection. Takes no lock, so a signal handler may call it."""
        self._presence.wake()

    def outage_began(self) -> None:
        """Do not report the next failure, because the outage is reported."""
        self._failed_once = False

    def close(self) -> None:
        """Close the connection."""
        self._presence.close()

    def _open(self, seconds: float) -> PresenceReady | None:
        now = self._clock.elapsed()
        if now < self._reopen_at or not self._connectivity.reachable:
            self._clock.sleep(max(seconds, 0.0))
            return None
        self._reopen_at = now + _REOPEN_INTERVAL
        try:
            self._presence.open()
        except PresenceError as exc:
            # The first failure may be the beginning of an outage of Redis, which is reported instead.
            if self._failed_once:
                self._duties.failed(Duty.PRESENCE, DutyFault.REFUSED, str(exc))
            self._failed_once = True
            return None
        self._failed_once = False
        self._duties.done(Duty.PRESENCE)
        return PresenceReady()
