"""Due instants of redbeat's ``rrule`` schedules."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from dateutil.rrule import DAILY, HOURLY, MINUTELY, SECONDLY, WEEKLY
from redbeat.decoder import RedBeatJSONEncoder

from ha_beat.schedule.occurrence import FOREVER
from ha_beat.schedule.recurrence import Searched

#: Seconds of the frequencies with units of equal length.
_UNITS = {WEEKLY: 604_800, DAILY: 86_400, HOURLY: 3_600, MINUTELY: 60, SECONDLY: 1}

#: Largest ``count``: the last instant is found by counting.
_LARGEST_COUNT = 1_000_000


class RRule(Searched):
    """Recurrence by a rule of iCalendar.

    dateutil searches from the start of the rule, which may be years ago. This class moves the start to just before the
    instant, by a multiple of the rule's interval.
    """

    def __init__(self, source: Any) -> None:
        """``source`` is redbeat's ``rrule``.

        Raises:
            ValueError: the rule has no instants, or too large a count.
        """
        self._identity = f"rrule {json.dumps(source, cls=RedBeatJSONEncoder, sort_keys=True)}"
        if (source.count or 0) > _LARGEST_COUNT:
            raise ValueError(f"count is {source.count}, more than {_LARGEST_COUNT}")
        rule = source.rrule
        first = next(iter(rule), None)
        if first is None and source.count != 0:
            raise ValueError("the rule has no instants")
        #: Last instant of a rule with a count, ``None`` for others.
        self._last_counted: datetime | None = None
        self._ended = first is None
        if source.count:
            *_, self._last_counted = rule
            rule = rule.replace(count=None)
        self._rule: Any = rule
        self._start: datetime = source.dtstart.replace(microsecond=0)
        unit = _UNITS.get(source.freq)
        self._step = timedelta(seconds=unit * source.interval) if unit else None

    @property
    def identity(self) -> str:
        return self._identity

    def _search(self, instant: datetime) -> datetime:
        local = instant.astimezone(self._start.tzinfo)
        last = self._last_counted
        if self._ended or (last is not None and local >= last):
            return FOREVER
        found = self._near(local).after(local)
        return FOREVER if found is None else found.astimezone(UTC)

    def _near(self, local: datetime) -> Any:
        """Return the rule with a start shortly before the instant."""
        steps = (local - self._start) // self._step - 1 if self._step else 0
        return self._rule.replace(dtstart=self._start + steps * self._step) if self._step and steps > 0 else self._rule
