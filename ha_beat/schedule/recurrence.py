"""The due instants of Celery's schedules, in UTC.

Celery asks each schedule 'are you due now?' and forgets the instant it was due at. Here the instant comes first: it is
what an occurrence is known by. ``schedule``, ``crontab`` and ``solar`` can say it; one of somebody's own can only
be asked.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from celery.utils.time import remaining

from ha_beat.schedule.occurrence import Instants


class Interval:
    """Every so often, counted from the last due instant: no drift."""

    def __init__(self, source: Any) -> None:
        if source.run_every <= timedelta(0):
            raise ValueError(f"the interval must be longer than 0 s, this one is {source.run_every}")
        self._every: timedelta = source.run_every

    def next_after(self, instant: datetime) -> datetime:
        return instant + self._every

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        count = (now - known) // self._every
        return known + count * self._every, count

    def first_from(self, known: datetime, since: datetime) -> datetime:
        """On the grid that ``known`` is on, before or after it."""
        return known - (known - since) // self._every * self._every


class _Searched:
    """Instants that depend on the calendar, so that the newest can be looked for from behind.

    The last answer is remembered: an occurrence is decided on, recorded and followed by the next with the same one, and
    many entries that share a schedule stand at the same instant.
    """

    _last: tuple[datetime, datetime] | None = None

    def next_after(self, instant: datetime) -> datetime:
        last = self._last
        if last is None or last[0] != instant:
            last = self._last = (instant, self._search(instant))
        return last[1]

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
    """The schedule with its clock at the instant: what follows it must not depend on when one asks."""
    twin = object.__new__(type(source))
    twin.__dict__.update(source.__dict__)
    twin.nowfun = lambda: instant
    return twin


class RelativeInterval(_Searched):
    """Every so often, rounded to the resolution of the interval (``relative=True``)."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def _search(self, instant: datetime) -> datetime:
        source = self._source
        left = remaining(source.maybe_make_aware(instant), source.run_every, instant, source.relative)
        return instant + left


class Crontab(_Searched):
    """Minutes of the calendar, in the schedule's time zone."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def _search(self, instant: datetime) -> datetime:
        # Celery before 5.6 reads the fields of the zone that it is given, and compares with today's date.
        local = instant.astimezone(self._source.tz)
        start, delta, _ = _at(local, self._source).remaining_delta(local)
        return instant + remaining(start, delta, instant)


class Solar(_Searched):
    """Events of the sun, to the second: where in its orbit one starts to compute moves them by milliseconds."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def _search(self, instant: datetime) -> datetime:
        event: datetime = instant + _at(instant, self._source).remaining_estimate(instant + timedelta(seconds=1))
        return (event + timedelta(microseconds=500_000)).replace(microsecond=0)  # guard: solar-seconds


_OWN = {schedule: Interval, crontab: Crontab, solar: Solar}
_DECIDING = ("is_due", "remaining_estimate", "remaining_delta")


def instants_of(entry: ScheduleEntry) -> Instants | None:
    """The due instants of an entry, or ``None`` where only its own ``is_due`` knows.

    Raises:
        ValueError: the schedule has none.
    """
    source: Any = entry.schedule
    if type(entry).is_due is not ScheduleEntry.is_due:
        return None
    for kind, instants in _OWN.items():
        if isinstance(source, kind):
            if any(getattr(type(source), name, None) is not getattr(kind, name, None) for name in _DECIDING):
                return None
            if getattr(source, "relative", False):
                return RelativeInterval(source)
            made: Any = instants(source)
            return made  # type: ignore[no-any-return]
    return None


def starting_deadline(entry: ScheduleEntry) -> float | None:
    """Celery's ``beat_cron_starting_deadline``: seconds that a crontab may be late, ``None`` for any."""
    source = entry.schedule
    if not isinstance(source, crontab):
        return None
    deadline: float | None = source.app.conf.beat_cron_starting_deadline
    return deadline


def first_from(instants: Instants, known: datetime, since: datetime) -> datetime:
    """The first due instant at or after ``since``, given ``known``, which is one.

    Instants that are counted from one another have to know by a method ``first_from`` of their own.
    """
    own: Any = getattr(instants, "first_from", None)
    found: datetime = own(known, since) if own is not None else instants.next_after(since - timedelta(microseconds=1))
    return found
