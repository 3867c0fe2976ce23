"""Signatures of entries: digests by which an edit of a schedule is noticed."""

from __future__ import annotations

import hashlib
from typing import Any

from celery.beat import ScheduleEntry

from ha_beat.schedule.recurrence import Recurrence, has_own_is_due, recurrence_of


def short_digest(content: str) -> str:
    """Return 12 hex digits. ``content`` may hold lone surrogates."""
    return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def signature(entry: ScheduleEntry, recurrence: Recurrence | None) -> str:
    """Return a digest of the entry's schedule: the same in every process, and for equal schedules of any class.

    Without a recurrence it is a digest of the schedule's class, so that a change of its values is not an edit.
    """
    return short_digest(type(entry.schedule).__qualname__ if recurrence is None else recurrence.identity)


class SharedRecurrences:
    """Recurrence and signature of each schedule object, computed once: many entries may share one object.

    Create one for each load: it does not notice a schedule that is changed afterwards.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, type], tuple[Any, Recurrence | None, str]] = {}

    def of(self, entry: Any) -> tuple[Recurrence | None, str]:
        """Return the recurrence of an entry and the signature. Raises what :func:`recurrence_of` raises."""
        if has_own_is_due(entry):
            return None, signature(entry, None)
        schedule = entry.schedule
        key = id(schedule), type(entry)
        found = self._found.get(key)
        if found is None:
            recurrence = recurrence_of(entry)
            found = self._found[key] = schedule, recurrence, signature(entry, recurrence)
        return found[1:]
