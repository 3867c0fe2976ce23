"""Forecast of a standby: the entries of a large schedule that are due first, which a new leader loads first.

It decides only the order in which rows are read. An entry that is missing or out of date here is loaded a little later.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

from ha_beat.clock import Clock
from ha_beat.leader.gc_pause import return_free_memory
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule.recurrence import Recurrence
from ha_beat.store.shadow import Shadow

#: Entry as a forecast needs it: id, recurrence, and the last run that the schedule's own store knows.
Outline = tuple[str, Recurrence | None, datetime]

#: Seconds of work in one turn of a standby: before it has read all entries once, and later.
_NEW_BUDGET, _BUDGET = 0.1, 0.01

#: Seconds in which a new leader completes the forecast.
_TAKE_BUDGET = 0.5

#: Entries between two readings of the clock.
_STEP = 50

#: Seconds after which all entries are read again. Edits and new entries are missing until then.
_REREAD = 600.0

#: Entries due within this time of a takeover are loaded first, and the most of them.
_AHEAD = timedelta(minutes=5)
_MOST = 20_000


class Forecast:
    """Due times of the entries as a standby can compute them. Used by the main loop only."""

    def __init__(
        self, outlines: Callable[[], Iterable[Outline]], shadow: Shadow, now: Callable[[], datetime], clock: Clock
    ) -> None:
        """``outlines`` returns all entries at little cost. ``now`` returns the scheduling time."""
        self._outlines = outlines
        self._shadow = shadow
        self._now = now
        self._clock = clock
        self._unread: Iterator[Outline] | None = None
        self._reread_at = 0.0
        self._heap: list[tuple[datetime, int, Outline]] = []
        self._next: list[tuple[datetime, int, Outline]] = []

    def turn(self) -> None:
        """Bring a part of the forecast up to date."""
        now = self._clock.elapsed()
        if self._unread is None and now >= self._reread_at:
            self._unread, self._next = iter(self._outlines()), []
        if self._unread is not None:
            self._read(self._unread, now + (_BUDGET if self._heap else _NEW_BUDGET))
        self._refresh(now + _BUDGET)

    def take(self) -> list[str]:
        """Return the ids of the entries that are due soon, in order of due time, and forget all entries.

        Complete the forecast first, as far as that is quick.
        """
        if not self._heap:
            self._read(self._unread or iter(self._outlines()), self._clock.elapsed() + _TAKE_BUDGET)
        if not self._heap:
            heapq.heapify(self._next)
        heap, until = self._heap or self._next, self._now() + _AHEAD
        found: list[str] = []
        while heap and heap[0][0] <= until and len(found) < _MOST:
            found.append(heapq.heappop(heap)[2][0])
        self._heap, self._next, self._unread, self._reread_at = [], [], None, 0.0
        return found

    def _read(self, outlines: Iterator[Outline], until: float) -> None:
        while self._clock.elapsed() < until:
            for _ in range(_STEP):
                outline = next(outlines, None)
                if outline is None:
                    # An empty schedule may not have been read yet, so it is read again soon.
                    self._unread, self._reread_at = None, self._clock.elapsed() + (_REREAD if self._next else 0.0)
                    heapq.heapify(self._next)
                    self._heap, self._next = self._next, []
                    return_free_memory()
                    return
                self._next.append((self._due(outline), len(self._next), outline))

    def _refresh(self, until: float) -> None:
        """Compute the next due time of entries whose time has passed, because a leader may have enqueued them."""
        now, passed = self._now(), []
        heap = self._heap
        while heap and heap[0][0] <= now and self._clock.elapsed() < until:
            passed += [heapq.heappop(heap) for _ in range(min(_STEP, len(heap))) if heap[0][0] <= now]
        for _, number, outline in passed:
            heapq.heappush(heap, (self._due(outline), number, outline))

    def _due(self, outline: Outline) -> datetime:
        entry_id, recurrence, stored = outline
        known = self._shadow.position(entry_id)
        position = stored if known is None else max(known, stored)
        if recurrence is None:
            return NEVER
        try:
            return recurrence.next_after(self._now() if position == NEVER else position)
        except Exception:  # reported by the leader
            return NEVER
