"""Entries that have series in the metrics, and those of them that have left the schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection

#: Seconds for which the numbers of an entry stay after its last occurrence, also if it left the schedule. A scrape must
#: find those of an entry that ran once.
KEPT = 3600.0

#: Seconds between two searches for entries that left the schedule.
_INTERVAL = 60.0

#: Number of entries for which nothing is dropped.
_FEW = 1000


class DepartedEntries:
    """Memory of the entries with numbers. Used by one thread at a time."""

    def __init__(self, scheduled: Callable[[], Collection[str]], elapsed: Callable[[], float]) -> None:
        """``scheduled`` returns the names of all entries of the schedule, nothing if they are unknown."""
        self._scheduled = scheduled
        self._elapsed = elapsed
        self._seen: dict[str, float] = {}
        self._next_search = 0.0

    def saw(self, entry: str) -> None:
        self._seen[entry] = self._elapsed()

    def take(self) -> Collection[str]:
        """Return the entries to drop, and forget them. Costs nothing in most calls."""
        now = self._elapsed()
        if len(self._seen) <= _FEW or now < self._next_search:
            return ()
        self._next_search = now + _INTERVAL
        scheduled = self._scheduled()
        if not scheduled:
            return ()
        gone = [entry for entry, at in self._seen.items() if at < now - KEPT and entry not in scheduled]
        for entry in gone:
            del self._seen[entry]
        return gone
