"""Complete read of the rows, in pages."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime
from typing import Any

from ha_beat.clock import Clock
from ha_beat.row_store.backend import RowQueries
from ha_beat.row_store.table import RowTable

#: Rows per page.
PAGE = 1000


class FullRead:
    """One pass over the enabled rows by primary key. A row that is known and not on its page is gone."""

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
