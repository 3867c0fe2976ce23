"""Recurrences: the due instants of Celery's schedules, in UTC.

Celery asks each schedule whether it is due now, and does not keep the instant at which it was due. An occurrence is
identified by that instant, so this module computes it for ``schedule``, ``crontab`` and ``solar``. Schedules of other
classes have no recurrence: they can only be asked whether they are due.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import date, datetime, time, timedelta, tzinfo
from types import FunctionType
from typing import Any, Protocol

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from celery.utils.time import remaining

_MICROSECOND = timedelta(microseconds=1)

#: Longest range in days in which the instants of a crontab are counted.
_COUNTED_DAYS = 366


class Recurrence(Protocol):
    """Due instants of one entry, in UTC.

    A class may also define the methods ``origin`` and ``first_from`` and the attribute ``only``: see :func:`origin`,
    :func:`first_from` and :func:`only_instant`.
    """

    @property
    def identity(self) -> str:
        """Return a text that is equal for all schedules with these instants, in every process."""
        ...

    def next_after(self, instant: datetime) -> datetime:
        """Return the due instant that follows a due instant; ``FOREVER`` if there is none."""
        ...

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        """Return the newest due instant up to ``now``, and how many there are after ``known``, which is a due instant.

        Must not step through all instants. The count is -1 if that would be necessary.
        """
        ...


def origin(recurrence: Recurrence | None, now: datetime) -> datetime:
    """Return the instant from which an entry that starts or resumes at ``now`` is counted.

    It is ``now`` unless the recurrence has a method ``origin``. That may return an earlier instant, if no instant
    between the two is due.
    """
    own: Any = getattr(recurrence, "origin", None)
    return now if own is None else own(now)


def first_from(recurrence: Recurrence, known: datetime, since: datetime) -> datetime:
    """Return the first due instant at or after ``since``. ``known`` is a due instant.

    A recurrence that counts each instant from the previous one needs a method ``first_from`` for this.
    """
    own: Any = getattr(recurrence, "first_from", None)
    found: datetime = own(known, since) if own else recurrence.next_after(since - _MICROSECOND)
    return found


def only_instant(recurrence: Recurrence | None) -> datetime | None:
    """Return the instant of a recurrence with a single one (its attribute ``only``), ``None`` for others."""
    found: datetime | None = getattr(recurrence, "only", None)
    return found


class Interval:
    """Recurrence at a fixed distance from the last due instant, without drift.

    Raises:
        ValueError: the interval is not positive. A program may assign it at any time, so each method checks it.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        _ = self._every

    @property
    def _every(self) -> timedelta:
        every: timedelta = self._source.run_every
        if every <= timedelta(0):
            raise ValueError(f"the interval must be longer than 0 s, but is {every}")
        return every

    @property
    def identity(self) -> str:
        return f"interval {_microseconds(self._every)}"

    def next_after(self, instant: datetime) -> datetime:
        return instant + self._every

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        every = self._every
        count = (now - known) // every
        return known + count * every, count

    def first_from(self, known: datetime, since: datetime) -> datetime:
        """Return the first instant from ``since`` on the grid of ``known``, which may be before or after it."""
        every = self._every
        return known - (known - since) // every * every


def _microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)


class Searched:
    """Base of recurrences that depend on the calendar only: their newest instant can be searched backwards.

    It caches the last result. One occurrence asks for the same instant several times, and entries that share a schedule
    often have the same position.
    """

    _last: tuple[datetime, datetime] | None = None

    def next_after(self, instant: datetime) -> datetime:
        last = self._last
        if last is None or last[0] != instant:
            last = self._last = (instant, self._search(instant))
        return last[1]

    @property
    def identity(self) -> str:
        raise NotImplementedError

    def _search(self, instant: datetime) -> datetime:
        raise NotImplementedError

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        back = timedelta(seconds=1)
        newest = known
        while now - back > known:
            candidate = self.next_after(now - back)
            if candidate <= now:
                newest = candidate
                break
            back *= 2
        while (following := self.next_after(newest)) <= now:
            newest = following
        return newest, -1


def _at(instant: datetime, source: Any) -> Any:
    """Return a copy of the schedule whose clock shows the instant: results must not depend on the current time."""
    twin = object.__new__(type(source))
    twin.__dict__.update(source.__dict__)
    twin.nowfun = lambda: instant
    return twin


class RelativeInterval(Searched):
    """Recurrence at an interval whose instants are rounded to the interval's unit (``relative=True``)."""

    def __init__(self, source: Any) -> None:
        self._source = source

    @property
    def identity(self) -> str:
        return f"relative {_microseconds(self._source.run_every)} {self._source.tz}"

    def _search(self, instant: datetime) -> datetime:
        source = self._source
        # Celery rounds in the zone of the last run, which is the app's.
        left = remaining(instant.astimezone(source.tz), source.run_every, instant, source.relative)
        return instant + left


class Crontab(Searched):
    """Recurrence at minutes of the calendar, in the schedule's time zone.

    Celery searches, except for an instant on the same day, which is found here five times as fast. Instants are counted
    by days.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._read_fields()

    def _read_fields(self) -> None:
        self._fields = hour, minute = self._source.hour, self._source.minute
        self._hours, self._minutes = sorted(hour), sorted(minute)

    @property
    def identity(self) -> str:
        source = self._source
        fields = (source.minute, source.hour, source.day_of_month, source.month_of_year, source.day_of_week)
        return f"crontab {[sorted(values) for values in fields]} {source.tz}"

    def next_after(self, instant: datetime) -> datetime:
        # Seconds do not matter. Positions of entries that share a schedule are often in the same minute.
        return super().next_after(instant.replace(second=0, microsecond=0))

    def _search(self, instant: datetime) -> datetime:
        # Celery before 5.6 reads the fields in the given zone and compares them with today's date.
        local = instant.astimezone(self._source.tz)
        same_day = self._later_that_day(instant, local)
        if same_day is not None:
            return same_day
        start, delta, _ = _at(local, self._source).remaining_delta(local)
        return instant + remaining(start, delta, instant)

    def _later_that_day(self, instant: datetime, local: datetime) -> datetime | None:
        """Return the next instant if it is on the same day, with no change of the clock in between."""
        if self._source.hour is not self._fields[0] or self._source.minute is not self._fields[1]:
            # A program may assign them at any time.
            self._read_fields()
        if local.fold or not self._matches(local):
            return None
        hour, place = local.hour, bisect_right(self._minutes, local.minute)
        if place == len(self._minutes) or hour not in self._source.hour:
            later, place = bisect_right(self._hours, hour), 0
            if later == len(self._hours):
                return None
            hour = self._hours[later]
        seconds = (hour - local.hour) * 3600 + (self._minutes[place] - local.minute) * 60 - local.second
        found = instant + timedelta(seconds=seconds, microseconds=-local.microsecond)
        there = found.astimezone(local.tzinfo)
        return found if there.utcoffset() == local.utcoffset() and not there.fold else None

    def _matches(self, day: date) -> bool:
        source = self._source
        return (
            day.month in source.month_of_year
            and day.day in source.day_of_month
            and day.isoweekday() % 7 in source.day_of_week
        )

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        newest, _ = super().newest(known, now)
        since, until = known.astimezone(self._source.tz), newest.astimezone(self._source.tz)
        days = [since.date() + timedelta(days=number) for number in range((until.date() - since.date()).days + 1)]
        if len(days) > _COUNTED_DAYS or len({_midnight(day, self._source.tz).utcoffset() for day in days}) > 1:
            return newest, -1
        if since.utcoffset() != until.utcoffset():
            return newest, -1
        full = len(self._hours) * len(self._minutes)
        count = sum(full for day in days[:-1] if self._matches(day))
        return newest, count + self._until(until) - self._until(since)

    def _until(self, local: datetime) -> int:
        """Return how many instants its day has up to a due instant."""
        return bisect_left(self._hours, local.hour) * len(self._minutes) + bisect_right(self._minutes, local.minute)


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time(), zone)


class Solar(Searched):
    """Recurrence at events of the sun, rounded to the second: Celery's result varies by milliseconds."""

    def __init__(self, source: Any) -> None:
        self._source = source

    @property
    def identity(self) -> str:
        source = self._source
        return f"solar {source.event} {float(source.lat)} {float(source.lon)}"

    def _search(self, instant: datetime) -> datetime:
        event: datetime = instant + _at(instant, self._source).remaining_estimate(instant + timedelta(seconds=1))
        return (event + timedelta(microseconds=500_000)).replace(microsecond=0)  # guard: solar-seconds


_OWN = {schedule: Interval, crontab: Crontab, solar: Solar}

#: Kinds of methods. A class attribute of another kind that has ``__get__`` computes a value.
_METHODS = (FunctionType, staticmethod, classmethod)


def has_own_is_due(entry: Any) -> bool:
    """True if the entry has an ``is_due`` besides that of its class."""
    if type(entry) is ScheduleEntry:
        # Reading __dict__ would create a dict for each entry.
        return getattr(entry.is_due, "__func__", None) is not ScheduleEntry.is_due
    return "is_due" in getattr(entry, "__dict__", ())


def recurrence_of(entry: ScheduleEntry) -> Recurrence | None:
    """Return the recurrence of an entry, or ``None`` if only its ``is_due`` can decide.

    Raises:
        ValueError: the schedule has no due instants.
    """
    source: Any = entry.schedule
    if type(entry).is_due is not ScheduleEntry.is_due or has_own_is_due(entry):
        return None
    if type(entry).schedule is not None:
        # A property, for example.
        return None
    for kind, recurrence in _OWN.items():
        if isinstance(source, kind):
            if getattr(source, "nowfun", None) is not None or not _as_defined(source, kind):
                return None
            if getattr(source, "relative", False):
                return RelativeInterval(source)
            made: Any = recurrence(source)
            return made  # type: ignore[no-any-return]
    return None


def _as_defined(source: Any, kind: type) -> bool:
    """True if neither a subclass nor the object replaces an attribute of ``kind``, and none is computed."""
    own = [cls for cls in type(source).__mro__ if not issubclass(kind, cls)]
    for name, value in ((name, value) for cls in own for name, value in vars(cls).items()):
        computed = hasattr(value, "__get__") and not isinstance(value, _METHODS)
        if name == "__getattribute__" or (not name.startswith("__") and (computed or hasattr(kind, name))):
            return False
    return not any(callable(getattr(kind, name, None)) for name in getattr(source, "__dict__", ()))


def starting_deadline(entry: ScheduleEntry) -> float | None:
    """Return Celery's ``beat_cron_starting_deadline``: seconds that a crontab may be late, or ``None`` for no limit."""
    source = entry.schedule
    if not isinstance(source, crontab):
        return None
    deadline: float | None = source.app.conf.beat_cron_starting_deadline
    return deadline
