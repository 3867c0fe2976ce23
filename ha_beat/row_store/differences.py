"""Comparison of the rows in the database with the known rows, by their number and the sum of their primary keys.

For these totals the database passes over its table. Comparisons are limited to a share of the time, so that an edit
costs no more in a larger table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ha_beat.clock import Clock
from ha_beat.row_store.backend import RowQueries, Totals

#: A range with more known rows than this is halved. The primary keys of other ranges are read.
_RANGE = 1000

#: Share of the time for comparisons if no saved row explains the mark, and if one does.
_UNEXPLAINED_SHARE, _EXPLAINED_SHARE = 0.1, 0.005

#: Shortest and longest pause in seconds between comparisons if saved rows explain the mark.
_PAUSE, _LONGEST_PAUSE = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class Differences:
    """Primary keys of enabled rows that are unknown, and of known rows that were disabled or deleted."""

    unknown: set[Any] = field(default_factory=set)
    absent: set[Any] = field(default_factory=set)


class Comparison:
    """Comparison of the totals: when it is due, and which rows differ."""

    def __init__(self, query: RowQueries, clock: Clock) -> None:
        self._query = query
        self._clock = clock
        self._needed_until = self._began = self._ended = float("-inf")
        #: True if no saved row explains the mark.
        self.unexplained = False

    def need(self, until: float, *, unexplained: bool) -> None:
        """Compare soon, and for the last time at ``until`` on ``Clock.elapsed`` or later."""
        self._needed_until = max(self._needed_until, until)
        self.unexplained = self.unexplained or unexplained

    @property
    def due(self) -> bool:
        """True if a comparison is needed and its share of the time allows it."""
        took = self._ended - self._began if self._ended > self._began else 0.0
        if self.unexplained:
            pause = took / _UNEXPLAINED_SHARE
        else:
            pause = min(max(took / _EXPLAINED_SHARE, _PAUSE), _LONGEST_PAUSE)
        return self._began < self._needed_until and self._clock.elapsed() >= self._ended + pause

    def differences(self, known: Collection[int], totals: Totals) -> Differences | None:
        """Return the differences, ``None`` if the totals are equal. Raises the database's errors.

        ``totals`` are the number of the ``known`` rows and the sum of their primary keys.
        """
        began = self._clock.elapsed()
        surplus = _difference(self._query.totals(None, None), totals)
        found = self._search(sorted(known), surplus) if any(surplus) else None
        self._began, self._ended, self.unexplained = began, self._clock.elapsed(), False
        return found

    def _search(self, keys: Sequence[int], surplus: Totals) -> Differences:
        """Halve the ranges whose totals differ. ``surplus`` is the database's totals minus those of ``keys``."""
        found = Differences()
        ranges: list[tuple[int | None, int | None, Totals]] = [(None, None, surplus)]
        while ranges:
            first, until, surplus = ranges.pop()
            start = 0 if first is None else bisect_left(keys, first)
            part = keys[start : len(keys) if until is None else bisect_left(keys, until)]
            if len(part) > _RANGE:
                middle = part[len(part) // 2]
                lower = part[: len(part) // 2]
                below = _difference(self._query.totals(first, middle), (len(lower), sum(lower)))
                halves = (first, middle, below), (middle, until, _difference(surplus, below))
                ranges += [half for half in halves if any(half[2])]
                continue
            present = self._query.ids(first, until)
            found.unknown.update(present - set(part))
            found.absent.update(set(part) - present)
        return found


def _difference(totals: Totals, others: Totals) -> Totals:
    return totals[0] - others[0], totals[1] - others[1]
