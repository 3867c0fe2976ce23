"""Computation of the entries' next instants while standing by, so that a takeover finds them cached."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from ha_beat.clock import Clock
from ha_beat.row_store.table import RowTable

#: Seconds of work in one turn: for entries that are new or were edited, and for the others.
_NEW_BUDGET, _OTHERS_BUDGET = 0.1, 0.01

#: Entries between two looks at the clock.
_STEP = 50


class NextInstants:
    """Computation for all entries of a table, a part in each turn. Used by the reading thread."""

    def __init__(self, table: RowTable, position: Callable[[str], datetime | None], clock: Clock) -> None:
        """``position`` returns the cluster's position of an entry by its id."""
        self._table = table
        self._position = position
        self._clock = clock
        self._number = 0
        self._new: deque[str] = deque()
        self._others: deque[str] = deque()

    def turn(self) -> None:
        """Compute the next instants of new entries, and of some others, whose positions may have changed."""
        number = self._table.number
        if number != self._number:
            changed = self._table.changed_since(self._number)
            self._new.extend(self._table.entries if changed is None else changed)
            self._number = number
        self._work(self._new, _NEW_BUDGET)
        if not self._others:
            self._others.extend(self._table.entries)
        self._work(self._others, _OTHERS_BUDGET)

    def _work(self, ids: deque[str], budget: float) -> None:
        until = self._clock.elapsed() + budget
        while ids:
            for _ in range(min(_STEP, len(ids))):
                self._compute(ids.popleft())
            if self._clock.elapsed() >= until:
                return

    def _compute(self, entry_id: str) -> None:
        entry = self._table.entries.get(entry_id)
        if entry is None:
            return
        known = [at for at in (self._position(entry_id), entry.stored_last_run_at) if at is not None]
        if known:
            # The leader reports a schedule that raises.
            with suppress(Exception):
                entry.instants.next_after(max(known))
