"""Due instants of rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from celery.schedules import crontab, schedule, solar

from ha_beat.schedule import recurrence as timetable
from ha_beat.schedule.occurrence import FOREVER
from ha_beat.schedule.recurrence import Crontab, Interval, Recurrence, Solar

_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(days=1)

#: Gaps that a crontab caches. The last runs of rows that share it are in few gaps.
_GAPS = 4


def utc(value: datetime) -> datetime:
    """Return the instant in UTC. A naive instant counts as UTC, as in the stores' own schedulers."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Clocked:
    """Single instant of a clocked schedule."""

    def __init__(self, at: datetime) -> None:
        self.only = at

    @property
    def identity(self) -> str:
        return f"clocked {self.only}"

    def next_after(self, instant: datetime) -> datetime:
        return self.only if instant < self.only else FOREVER

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:  # noqa: ARG002 -- part of the protocol
        return known, 0


class Window:
    """Instants of another schedule from ``start`` on and before ``until``.

    The first instant of an interval with a start is the start itself.
    """

    def __init__(self, inner: Recurrence, start: datetime | None, until: datetime | None) -> None:
        self._inner = inner
        self._start = start
        self._until = until

    @property
    def identity(self) -> str:
        """Return the identity without the end, on which earlier instants do not depend."""
        return self._inner.identity if self._start is None else f"{self._inner.identity} from {self._start}"

    def next_after(self, instant: datetime) -> datetime:
        following = self._following(instant)
        return following if self._until is None or following < self._until else FOREVER

    def _following(self, instant: datetime) -> datetime:
        start, only = self._start, self.only
        if only is not None:
            return only if instant < only else FOREVER
        if start is None or instant >= start:
            return self._inner.next_after(instant)
        if isinstance(self._inner, Interval):
            return start
        return self._inner.next_after(start - _MICROSECOND)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        if self._until is not None:
            now = min(now, self._until - _MICROSECOND)
        return self._inner.newest(known, now) if now > known else (known, 0)

    def first_from(self, known: datetime, since: datetime) -> datetime:
        start = self._start
        if start is None or known >= start:
            first = timetable.first_from(self._inner, known, since if start is None else max(since, start))
        else:
            first = start if since <= start else timetable.first_from(self._inner, start, since)
        return first if self._until is None or first < self._until else FOREVER

    @property
    def only(self) -> datetime | None:
        """Return the single instant, even if it is after the end."""
        only = timetable.only_instant(self._inner)
        return only if only is None or self._start is None else max(only, self._start)

    def origin(self, now: datetime) -> datetime:
        """Return the instant from which an entry that appears or resumes now counts. Nothing before now is owed."""
        start = self._start
        if start is None or start > now or not isinstance(self._inner, Interval):
            return now
        return self._inner.newest(start, now)[0]


class GapCachingCrontab(Crontab):
    """Crontab that caches the gaps between its instants, for all rows that share it. It must not be changed.

    Within a gap the next instant is the same, except on a day of a clock change.
    """

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._gaps: tuple[tuple[datetime, datetime], ...] = ()

    def next_after(self, instant: datetime) -> datetime:
        for first, following in self._gaps:
            if first <= instant < following:
                return following
        following = super().next_after(instant)
        plain = self._is_plain_day(instant) and self._is_plain_day(following)
        if plain:  # guard: crontab-gap-plain
            self._gaps = ((instant, following), *self._gaps[: _GAPS - 1])
        return following

    def _is_plain_day(self, instant: datetime) -> bool:
        zone = self._source.tz
        try:
            return len({(instant + days).astimezone(zone).utcoffset() for days in (-_DAY, timedelta(), _DAY)}) == 1
        except OverflowError:
            return False


def instants_of(row: Any, inner: Recurrence) -> Recurrence:
    """Return the due instants of a row. ``inner`` are those of its schedule."""
    start = utc(row.start_time) if row.start_time else None
    until = utc(row.expires) if row.expires else None
    return inner if start is None and until is None else Window(inner, start, until)


def clocked_time_of(source: Any) -> datetime | None:
    """Return the instant of a clocked schedule, whose class is the store's; ``None`` if it is another schedule."""
    found: datetime | None = getattr(source, "clocked_time", None)
    return found


def schedule_instants(source: Any) -> Recurrence:
    """Return the due instants of a schedule.

    Raises:
        ValueError: the interval is not positive.
        TypeError: the kind of schedule is unknown.
    """
    clocked_time: datetime | None = clocked_time_of(source)
    if clocked_time is not None:
        return Clocked(utc(clocked_time))
    if isinstance(source, crontab):
        return GapCachingCrontab(source)
    if isinstance(source, solar):
        return Solar(source)
    if isinstance(source, schedule):
        return Interval(source)
    raise TypeError(f"{type(source).__name__} is not a schedule that a row can hold")
