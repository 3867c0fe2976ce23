"""Reading of the rows, at a cost that does not grow with their number.

Each check reads the time with which the store's models mark the schedule as changed. If that has moved, the rows that
were saved since are read. Rows that were deleted, enabled or disabled without being saved show in the number of rows
and the sum of their primary keys. These are compared at once if no saved row explains the mark, otherwise now and then.
If they do not explain it either, or if the table is small, all rows are read.

A complete read goes through the table in pages, over several turns. It is repeated as a backstop for changes that are
not marked, and soon after marked changes, because a bulk update in the same second as other changes has no sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.leader.gc_pause import gc_paused
from ha_beat.row_store.backend import RowQueries
from ha_beat.row_store.differences import Comparison
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.full_read import PAGE, FullRead
from ha_beat.row_store.table import RowTable

#: Seconds between complete reads. A bulk update does not mark the schedule as changed.
FULL_READ_INTERVAL = 300.0

#: Seconds after a marked change until a complete read.
_CONFIRM_AFTER = 60.0

#: Seconds for which a check looks for saved rows after the mark has moved: it may be written before the row.
_FOLLOW_UP = 3.0

#: Tolerated difference between the clocks of the processes that save rows.
_CLOCK_DIFFERENCE = timedelta(seconds=60)

#: Rows that were saved last, of which a check reads those that it has not seen.
_SAVED = 10 * PAGE

#: Time in which the models save a row and then mark the schedule as changed.
_SAVE_DURATION = timedelta(seconds=1)

#: Seconds of work for a complete read in one turn, if it is urgent and if it is the backstop.
_URGENT_BUDGET, _BACKSTOP_BUDGET = 0.25, 0.05


class RowReader:
    """Reader of the enabled rows, used by the reading thread. Other threads use ``table`` and ``complete``."""

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
        """Create a reader.

        Args:
            query: Queries for the rows.
            make_entry: Make the entry of a row. An exception leaves the row out.
            clock: Measures the time between complete reads.
            now: Return the scheduling time.
            emit: Receives the events.
            progress: Called after each page of a complete read.
        """
        self.table = RowTable(query.models, make_entry, emit)
        #: Number of complete reads.
        self.complete = 0
        self._query = query
        self._clock = clock
        self._now = now
        self._progress = progress
        self._comparison = Comparison(query, clock)
        self._full: FullRead | None = None
        #: True if an urgent complete read has to follow the one that is under way.
        self._wants_full = False
        self._full_due = 0.0
        #: A complete read because of an unexplained mark begins no earlier, so that it does not run all the time.
        self._urgent_from = 0.0
        self._mark: datetime | None = None
        self._follow_up_until = 0.0
        #: Rows that the last check found saved, with ``date_changed``.
        self._saved: dict[Any, datetime] = {}
        self._checked_at: datetime | None = None

    def entries(self) -> Mapping[str, RowEntry]:
        """Return the entries as last read, by primary key. Other threads must not iterate over them."""
        return self.table.entries

    def begin_full_read(self) -> int:
        """Begin a complete read in the next turn. It is done when ``complete`` has reached the returned number."""
        self._full = self._full_read(self._clock.elapsed(), urgent=True)
        return self.complete + 1

    def turn(self) -> float | None:
        """Read what has changed, and continue a complete read. Raises the database's errors.

        Returns:
            Seconds until the next turn, ``None`` for the usual time.
        """
        now = self._now()
        with self._query.limited():
            self._check(now)
        pause = self._continue(now)
        if self.complete:
            self._checked_at = now
        return pause

    # --- Marked changes

    def _check(self, now: datetime) -> None:
        """Read the rows that the mark says have changed."""
        mark, elapsed = self._query.last_change(), self._clock.elapsed()
        moved = mark != self._mark
        if not self.complete:
            # A mark from before the first read: a change during the read is found by the next check.
            self._mark = mark
            self._full = self._full or self._full_read(elapsed, urgent=True)
            return
        if moved:
            self._follow_up_until = elapsed + _FOLLOW_UP
            self._full_due = min(self._full_due, elapsed + _CONFIRM_AFTER)
        small, follows = len(self.table.known) <= PAGE, elapsed < self._follow_up_until
        if moved and (small or not self._query.has_integer_keys):
            # Of a small table all rows are read: that finds each change at once, at about the same cost.
            self._wants_full = True
        elif self._query.has_integer_keys:
            if follows:
                self._read_saved(mark, now, moved=moved)
            if self._comparison.due or (small and follows):
                self._compare(now)
        # Not before: if the database fails, the next check finds the mark moved.
        self._mark = mark

    def _read_saved(self, mark: datetime | None, now: datetime, *, moved: bool) -> None:
        """Read the rows that were saved since the last mark, and note whether they explain this one."""
        if mark is None:
            self._comparison.need(self._follow_up_until, unexplained=moved)
            return
        saved = dict(self._query.saved_since(min(self._mark or mark, mark) - _CLOCK_DIFFERENCE, _SAVED))
        new = dict(saved.items() - self._saved.items())
        if len(new) > PAGE:
            self._saved, self._wants_full = saved, True
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
            self._wants_full |= unexplained
            return
        if len(found.unknown) > PAGE:
            self._wants_full = True
            return
        try:
            self.table.apply(self._query.of(sorted(found.unknown)), found.absent, self._checked_at, now)
        except Exception:
            # The differences have to be found again.
            self._comparison.need(self._clock.elapsed(), unexplained=unexplained)
            raise

    # --- Complete reads

    def _continue(self, now: datetime) -> float | None:
        """Continue a complete read, or begin one that is due."""
        elapsed = self._clock.elapsed()
        if self._wants_full and not (self._full and self._full.urgent):
            self._full = self._full_read(max(elapsed, self._urgent_from), urgent=True)
            self._wants_full = False
        elif self._full is None and elapsed >= self._full_due:
            self._full = self._full_read(elapsed)
        full = self._full
        if full is None or elapsed < full.begin_at:
            return None
        budget = _URGENT_BUDGET if full.urgent else _BACKSTOP_BUDGET
        until = float("inf") if not self.complete else elapsed + budget
        while not full.done:
            # For one page only: a query leaves cycles behind.
            with gc_paused():
                full.read_page(self._checked_at, now)
            self._progress()
            if self._clock.elapsed() >= until:
                break
        ended = self._clock.elapsed()
        if not full.done:
            # As long a pause as the work, because the main loop needs the interpreter too.
            return ended - elapsed if full.urgent else None
        self.table.forget_deleted(self._query.existing)
        self.complete += 1
        self._full_due = min(self._full_due, ended + FULL_READ_INTERVAL)
        self._urgent_from = ended + 4 * full.worked
        self._full = None
        return None

    def _full_read(self, begin_at: float, *, urgent: bool = False) -> FullRead:
        # A change that is marked from now on may be on a page that was read before it.
        self._full_due = float("inf")
        return FullRead(self._query, self.table, self._clock, begin_at, urgent=urgent)
