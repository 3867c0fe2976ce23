"""Reading of changed rows, at a cost that does not grow with the number of rows.

Each check reads the mark: the time at which the store's models last marked the schedule as changed. If the mark has
moved, the rows that were saved since are read. Rows that were deleted, enabled or disabled without being saved change
the number of rows and the sum of their primary keys. These totals are compared immediately if no saved row explains the
mark, otherwise every few seconds. If the totals do not explain it either, or if the table is small, all rows are read.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.row_store.backend import RowQueries
from ha_beat.row_store.differences import Comparison
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.full_read import PAGE, FullReads
from ha_beat.row_store.table import RowTable

#: Seconds for which checks look for saved rows after the mark has moved: it may be written before the row.
_FOLLOW_UP = 3.0

#: Tolerated difference between the clocks of the processes that save rows.
_CLOCK_DIFFERENCE = timedelta(seconds=60)

#: Most rows that a check considers, those saved last.
_SAVED = 10 * PAGE

#: Longest time between the save of a row and the mark.
_SAVE_DURATION = timedelta(seconds=1)


class RowReader:
    """Reader of the enabled rows, used by the reading thread. Other threads use ``table`` and ``complete_reads``."""

    def __init__(
        self,
        query: RowQueries,
        make_entry: Callable[[Any], RowEntry],
        *,
        clock: Clock,
        now: Callable[[], datetime],
        emit: Callable[[events.Event], None],
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``now`` returns the scheduling time, and ``progress`` is called after each page of a complete read."""
        self.table = RowTable(query, make_entry, emit)
        self._query = query
        self._clock = clock
        self._now = now
        self._full_reads = FullReads(query, self.table, clock, progress)
        self._comparison = Comparison(query, clock)
        self._mark: datetime | None = None
        self._follow_up_until = 0.0
        #: Rows that the last check found saved, with ``date_changed``.
        self._saved: dict[Any, datetime] = {}
        self._checked_at: datetime | None = None

    @property
    def complete_reads(self) -> int:
        """Return the number of complete reads."""
        return self._full_reads.complete_reads

    def begin_full_read(self) -> int:
        """Begin a complete read in the next turn. It ends when ``complete_reads`` has reached the returned number."""
        return self._full_reads.begin()

    def turn(self) -> float | None:
        """Read the changes, and continue a complete read. Raises the database's errors.

        Returns:
            Seconds until the next turn, ``None`` for the usual time.
        """
        now = self._now()
        with self._query.limited():
            mark = self._query.last_change()
            if self.complete_reads:
                self._check(mark, now)
            # Last: if the database fails, the next check finds the mark moved.
            self._mark = mark
        pause = self._full_reads.turn(self._checked_at, now)
        if self.complete_reads:
            self._checked_at = now
        return pause

    def _check(self, mark: datetime | None, now: datetime) -> None:
        """Read the rows that the mark announces."""
        elapsed, moved = self._clock.elapsed(), mark != self._mark
        if moved:
            self._follow_up_until = elapsed + _FOLLOW_UP
            self._full_reads.confirm()
        small, follows = len(self.table.known) <= PAGE, elapsed < self._follow_up_until
        if moved and (small or not self._query.has_integer_keys):
            # All rows of a small table cost about as much, and show each change immediately.
            self._full_reads.want()
        elif self._query.has_integer_keys:
            if follows:
                self._read_saved(mark, now, moved=moved)
            if self._comparison.due or (small and follows):
                self._compare(now)

    def _read_saved(self, mark: datetime | None, now: datetime, *, moved: bool) -> None:
        """Read the rows that were saved since the last mark, and note whether they explain this one."""
        if mark is None:
            self._comparison.need(self._follow_up_until, unexplained=moved)
            return
        saved = dict(self._query.saved_since(min(self._mark or mark, mark) - _CLOCK_DIFFERENCE, _SAVED))
        new = dict(saved.items() - self._saved.items())
        if len(new) > PAGE:
            self._saved = saved
            self._full_reads.want()
            return
        rows = self._query.of(list(new))
        self.table.apply(rows, new.keys() - {row.pk for row in rows}, self._checked_at, now)
        self._saved = saved
        explained = any(changed >= mark - _SAVE_DURATION for changed in new.values())
        self._comparison.need(self._follow_up_until, unexplained=moved and not explained)

    def _compare(self, now: datetime) -> None:
        """Read the rows that appeared or disappeared without being saved."""
        unexplained = self._comparison.unexplained
        found = self._comparison.differences(self.table.known, self.table.totals)
        if found is None:
            if unexplained:
                self._full_reads.want()
            return
        if len(found.unknown) > PAGE:
            self._full_reads.want()
            return
        try:
            self.table.apply(self._query.of(sorted(found.unknown)), found.absent, self._checked_at, now)
        except Exception:
            # The differences have to be found again.
            self._comparison.need(self._clock.elapsed(), unexplained=unexplained)
            raise
