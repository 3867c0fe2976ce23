"""Due instants of an entry in a range of time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from celery import Celery, current_app
from celery.beat import ScheduleEntry
from celery.schedules import BaseSchedule

from ha_beat.schedule.recurrence import Recurrence, recurrence_of
from ha_beat.suggest import did_you_mean, nearest

#: Time until the next check of an entry whose schedule does not say when, as in beat.
_CHECK_AGAIN = timedelta(seconds=60)


def occurrences(
    what: Any, start: datetime, end: datetime, *, app: Celery | None = None, limit: int = 100_000
) -> list[datetime]:
    """Return the instants, in UTC, at which an entry is due after ``start``, up to and including ``end``.

    ``what`` is the name of an entry in the ``beat_schedule`` of ``app``, or a value that a ``beat_schedule`` accepts: a
    ``crontab``, ``solar`` or other schedule object, a ``timedelta``, a number of seconds, or a whole entry as a dict or
    a ``ScheduleEntry``. Intervals count from ``start``, as if the entry had run then. Crontabs use the time zone of
    ``app`` (default: the current app).

    For your own schedule class, ``is_due`` is called repeatedly while its clock moves forward. This works if the class
    reads the time from its ``now()``, as Celery's base class does.

    ::

        >>> occurrences(crontab(minute=0, hour="9-17"), monday, tuesday)[0]
        datetime.datetime(2030, 1, 7, 9, 0, tzinfo=datetime.timezone.utc)

    Raises:
        TypeError: ``what`` is not a schedule.
        ValueError: ``start`` or ``end`` has no time zone, there is no entry of that name, or there are more than
            ``limit`` instants.
    """
    for name, instant in (("start", start), ("end", end)):
        if instant.tzinfo is None:
            raise ValueError(f"{name} needs a time zone, such as tzinfo=UTC: {instant}")
    entry = _entry(what, app or current_app)
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    instants = recurrence_of(entry)
    due = _checked(entry, start, end) if instants is None else _computed(instants, start, end)
    found = list(islice(due, limit + 1))
    if len(found) > limit:
        raise ValueError(
            f"there are more than {limit} instants from {start} to {end}: use a shorter range, or raise limit"
        )
    return found


def _entry(what: Any, app: Celery) -> ScheduleEntry:
    if isinstance(what, ScheduleEntry):
        return what
    if isinstance(what, str):
        known: Mapping[str, Any] = app.conf.beat_schedule or {}
        if what not in known:
            hint = did_you_mean(nearest(what, known)) or f"; there are {', '.join(known) or 'none'}"
            raise ValueError(f"the app {app.main!r} has no entry {what!r} in its beat_schedule{hint}")
        return _entry(known[what], app)
    fields = dict(what) if isinstance(what, Mapping) else {"schedule": what}
    if not isinstance(fields.get("schedule"), int | float | timedelta | BaseSchedule):
        raise TypeError(f"{what!r} is not a schedule: give a schedule object, a timedelta, seconds, or an entry")
    if isinstance(fields["schedule"], BaseSchedule):
        # A copy, because Celery sets the app on the object.
        fields["schedule"] = copy.copy(fields["schedule"])
    return ScheduleEntry(**{"name": "entry", "task": "task", **fields, "app": app})


def _computed(instants: Recurrence, start: datetime, end: datetime) -> Iterator[datetime]:
    instant = instants.next_after(start)
    while instant <= end:
        yield instant
        instant = instants.next_after(instant)


def _checked(entry: ScheduleEntry, start: datetime, end: datetime) -> Iterator[datetime]:
    now = start
    entry = copy.copy(entry)
    schedule: Any = copy.copy(entry.schedule)
    schedule.nowfun = lambda: now
    entry.schedule, entry.last_run_at = schedule, start
    while now <= end:
        check_in: Any
        due, check_in = entry.is_due()
        if due:
            yield now
            entry.last_run_at = now
        usable = isinstance(check_in, int | float) and check_in > 0
        now += timedelta(seconds=check_in) if usable else _CHECK_AGAIN
