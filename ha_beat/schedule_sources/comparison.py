"""Comparison of a scheduler's schedule with the one that the leader has loaded."""

from __future__ import annotations

from copy import copy
from operator import attrgetter
from typing import Any

from celery.beat import ScheduleEntry

from ha_beat.clock import Clock

#: Least number of seconds between two comparisons of all entries, and the share of time that they may take.
_INTERVAL = 1.0
_SHARE = 1 / 500

#: Attributes of an entry that define it.
_DEFINING = ("task", "schedule", "args", "kwargs", "options")
_CONTAINERS = (dict, list, tuple)
_definition_of = attrgetter(*_DEFINING)


class ScheduleComparison:
    """Comparison of the schedule with itself at the last call.

    With ``asks_scheduler`` the scheduler's own ``schedules_equal`` is called, too.
    """

    def __init__(self, scheduler: Any, clock: Clock, *, asks_scheduler: bool) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._asks_scheduler = asks_scheduler
        self._last_schedule: Any = None
        #: Copy of the schedule that the scheduler compared last.
        self._last_copy: Any = None
        #: Hash of the objects in the schedule; ``None`` if the next ones count as known.
        self._last_objects: int | None = None
        self._next_at = 0.0

    def differs(self) -> bool:
        """True if the schedule or an entry in it was replaced since the last call."""
        schedule, last = self._scheduler.schedule, self._last_schedule
        self._last_schedule = schedule
        replaced = self._entry_replaced(schedule) or (last is not None and schedule is not last)
        if self._asks_scheduler:
            if not replaced:
                replaced = not self._scheduler.schedules_equal(self._last_copy, schedule)
            if replaced or self._last_copy is None:
                self._last_copy = copy(schedule)
        return replaced

    def accept_entries(self) -> None:
        """Take the entries of the next comparison as known. The scheduler has replaced one itself."""
        self._last_objects = None

    def _entry_replaced(self, schedule: Any) -> bool:
        """True if entries were added, removed or replaced since the last comparison, or were given other values."""
        began = self._clock.elapsed()
        if began < self._next_at:
            return False
        objects = 0
        # One number, not a list of all entries: for 100,000 of them that would take 16 MB.
        for name, entry in zip(list(schedule), list(schedule.values()), strict=False):
            objects = hash((objects, *_objects_of(name, entry)))
        now = self._clock.elapsed()
        self._next_at = now + max(_INTERVAL, (now - began) / _SHARE)
        last, self._last_objects = self._last_objects, objects
        return last not in (None, objects)


def _objects_of(name: str, entry: Any) -> tuple[Any, ...]:
    """Return values that differ if an entry was replaced, but not if it was copied after a run."""
    if type(entry) is ScheduleEntry:
        # As below, at half the cost: reading ``__dict__`` would make a dict, which the object would keep.
        task, schedule, args, kwargs, options = _definition_of(entry)
        return name, id(task), id(schedule), _id_of(args), _id_of(kwargs), _id_of(options)
    own = getattr(entry, "__dict__", {})
    return name, *(_id_of(own.get(attribute)) for attribute in _DEFINING)


def _id_of(value: Any) -> int:
    """Return the identity of a value; 0 for an empty container, because Celery creates another one at each copy.

    An object of the project's own class is not asked whether it is empty: it may raise, or load rows.
    """
    return 0 if type(value) in _CONTAINERS and not value else id(value)
