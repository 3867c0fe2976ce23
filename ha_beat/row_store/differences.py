"""Search for rows that appeared or disappeared without being saved."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ha_beat.row_store.backend import RowQueries

#: Known rows in a range whose primary keys are read instead of halving it again.
_RANGE = 1000


@dataclass(frozen=True, slots=True)
class Differences:
    """Primary keys of enabled rows that are not known, and of known rows that are not enabled or were deleted."""

    unknown: set[Any] = field(default_factory=set)
    absent: set[Any] = field(default_factory=set)


def differences(query: RowQueries, known: Collection[int]) -> Differences | None:
    """Compare the enabled rows with the known ones by their totals, halving the ranges that differ.

    Raises the database's errors.
    """
    if query.totals(None, None) == (len(known), sum(known)):
        return None
    keys, found = sorted(known), Differences()
    ranges: list[tuple[int | None, int | None]] = [(None, None)]
    while ranges:
        first, until = ranges.pop()
        start = 0 if first is None else bisect_left(keys, first)
        end = len(keys) if until is None else bisect_left(keys, until)
        part = keys[start:end]
        if (first, until) != (None, None) and query.totals(first, until) == (len(part), sum(part)):
            continue
        if len(part) > _RANGE:
            middle = part[len(part) // 2]
            ranges += [(first, middle), (middle, until)]
            continue
        present = query.ids(first, until)
        found.unknown.update(present - set(part))
        found.absent.update(set(part) - present)
    return found
