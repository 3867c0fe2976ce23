"""Complete reads: passes over all rows in pages, which find the changes that leave no other trace."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ha_beat.clock import Clock
from ha_beat.leader.gc_pause import gc_paused
from ha_beat.row_store.backend import RowQueries
from ha_beat.row_store.table import RowTable

#: Rows per page.
PAGE = 1000

#: Seconds between complete reads. A bulk update does not mark the schedule as changed.
FULL_READ_INTERVAL = 300.0

#: Seconds after a marked change until a complete read.
_CONFIRM_AFTER = 60.0

#: Seconds of work in one turn, for an urgent read and for the backstop.
_URGENT_BUDGET, _BACKSTOP_BUDGET = 0.25, 0.05

#: Pause after a complete read until an urgent one, as a multiple of its work.
_URGENT_PAUSE = 4


class FullRead:
    """One pass over the enabled rows by primary key. A known row that its page lacks was disabled or deleted."""

    def __init__(
        self, query: RowQueries, table: RowTable, clock: Clock, begin_at: float, *, urgent: bool = False
    ) -> None:
        """``begin_at`` is on ``Clock.elapsed``. An ``urgent`` read takes more of the interpreter's time."""
        self._query = query
        self._table = table
        self._clock = clock
        self._known = sorted(table.known)
        self._after: Any = None
        self.begin_at = begin_at
        self.urgent = urgent
        self.done = False
        #: Seconds of work so far.
        self.worked = 0.0

    def read_page(self, checked_at: datetime | None, now: datetime) -> None:
        """Read the next page. Raises the database's errors; the page can then be read again."""
        began = self._clock.elapsed()
        with self._query.limited():
            rows = self._query.page(self._after, PAGE)
            first = 0 if self._after is None else bisect_right(self._known, self._after)
            until = bisect_right(self._known, rows[-1].pk) if len(rows) == PAGE else len(self._known)
            self._table.apply(rows, set(self._known[first:until]) - {row.pk for row in rows}, checked_at, now)
        self.done = len(rows) < PAGE
        self._after = rows[-1].pk if rows else self._after
        self.worked += self._clock.elapsed() - began


class FullReads:
    """Complete reads of one replica: when the next one is due, and its pages over several turns.

    The first one is read in one turn. Later ones are repeated every five minutes, and a minute after a marked change,
    because a bulk update in the same second as other changes leaves no trace.
    """

    def __init__(self, query: RowQueries, table: RowTable, clock: Clock, progress: Callable[[], None]) -> None:
        """``progress`` is called after each page."""
        #: Number of complete reads.
        self.complete_reads = 0
        self._query = query
        self._table = table
        self._clock = clock
        self._progress = progress
        self._current: FullRead | None = None
        #: True if an urgent read has to follow the current one.
        self._wanted = False
        self._due = 0.0
        self._urgent_from = 0.0

    def begin(self) -> int:
        """Begin an urgent read in the next turn. It is done when ``complete_reads`` has reached the returned number."""
        self._begin(self._clock.elapsed(), urgent=True)
        return self.complete_reads + 1

    def want(self) -> None:
        """Read urgently, after a pause: unexplained changes must not keep the thread busy."""
        self._wanted = True

    def confirm(self) -> None:
        """Read a minute after a marked change."""
        self._due = min(self._due, self._clock.elapsed() + _CONFIRM_AFTER)

    def turn(self, checked_at: datetime | None, now: datetime) -> float | None:
        """Continue a read, or begin one that is due. Raises the database's errors.

        Returns:
            Seconds until the next turn, ``None`` for the usual time.
        """
        began = self._clock.elapsed()
        if self._wanted and not (self._current and self._current.urgent):
            self._begin(max(began, self._urgent_from), urgent=True)
            self._wanted = False
        elif self._current is None and began >= self._due:
            self._begin(began, urgent=not self.complete_reads)
        read = self._current
        if read is None or began < read.begin_at:
            return None
        self._read_pages(read, checked_at, now)
        ended = self._clock.elapsed()
        if not read.done:
            # As long a pause as the work, because the main loop needs the interpreter too.
            return ended - began if read.urgent else None
        self._table.forget_deleted()
        self.complete_reads += 1
        self._due = min(self._due, ended + FULL_READ_INTERVAL)
        self._urgent_from = ended + _URGENT_PAUSE * read.worked
        self._current = None
        return None

    def _begin(self, begin_at: float, *, urgent: bool) -> None:
        # A change that is marked from now on may be on a page that was read before it.
        self._due = float("inf")
        self._current = FullRead(self._query, self._table, self._clock, begin_at, urgent=urgent)

    def _read_pages(self, read: FullRead, checked_at: datetime | None, now: datetime) -> None:
        """Read pages until the budget is used up, all of them at the first read."""
        budget = _URGENT_BUDGET if read.urgent else _BACKSTOP_BUDGET
        until = self._clock.elapsed() + budget if self.complete_reads else float("inf")
        while not read.done:
            # For one page only: a query leaves cycles behind.
            with gc_paused():
                read.read_page(checked_at, now)
            self._progress()
            if self._clock.elapsed() >= until:
                return
