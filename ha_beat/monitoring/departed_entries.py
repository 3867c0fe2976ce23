"""Entries that have series in the metrics although they have left the schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ha_beat.clock import Clock

#: Seconds for which the series of an entry stay after its last occurrence. A scrape must find an entry that ran once.
_KEPT = 3600.0

#: Seconds between two searches for entries that left the schedule.
_INTERVAL = 60.0

#: Number of entries up to which nothing is dropped.
_FEW = 1000


class DepartedEntries:
    """Memory of the entries that have series. Used by one thread at a time."""

    def __init__(self, scheduled: Callable[[], Collection[str]], clock: Clock) -> None:
        """``scheduled`` returns the names of all entries of the schedule, nothing if they are unknown."""
        self._scheduled = scheduled
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._next_search = 0.0

    def saw(self, entry: str) -> None:
        self._seen[entry] = self._clock.elapsed()

    def take(self) -> Collection[str]:
        """Return the entries whose series to drop, and forget them. Most calls search nothing."""
        now = self._clock.elapsed()
        if len(self._seen) <= _FEW or now < self._next_search:
            return ()
        self._next_search = now + _INTERVAL
        scheduled = self._scheduled()
        if not scheduled:
            return ()
        gone = [entry for entry, at in self._seen.items() if at < now - _KEPT and entry not in scheduled]
        for entry in gone:
            del self._seen[entry]
        return gone
