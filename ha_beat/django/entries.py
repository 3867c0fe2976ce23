"""A row of django-celery-beat's table, as an entry of the schedule."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery
from celery.schedules import crontab, schedstate, schedule, solar
from django.utils import timezone
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.schedulers import ModelEntry

from ha_beat.django.instants import Remembered, instants_of, utc
from ha_beat.errors import HaBeatError
from ha_beat.leader.ledger_writer import NEVER
from ha_beat.schedule.entry_options import KEY, EntryOptions
from ha_beat.schedule.occurrence import Misfire
from ha_beat.schedule.recurrence import starting_deadline


class UnreadableRow(HaBeatError):
    """A row that can't be scheduled as it stands."""


class RowEntry(ModelEntry):  # type: ignore[misc]  # django-celery-beat has no types
    """One row. Unlike django-celery-beat's entry it never writes to the database.

    The key ``ha_beat`` of the row's headers holds the entry's own misfire rules, and does not go into the message.

    Raises:
        UnreadableRow: its arguments are not JSON, or it has no schedule.
        ConfigurationError: its own rules are not right.
        Exception: whatever a schedule with impossible values raises.
    """

    def __init__(self, model: Any, app: Celery | None = None) -> None:
        # Read first: the base class fills in an instant of its own where there is none.
        last_run_at: datetime | None = model.last_run_at
        if model.scheduler is None:
            raise UnreadableRow("it has no schedule")
        super().__init__(model, app)
        model.last_run_at = last_run_at
        self.schedule.app = self.app
        self.id = str(model.pk)
        headers: dict[str, Any] = self.options["headers"]
        own = headers.pop(KEY, None)
        if own is not None:
            self.options[KEY] = own
        self.instants = Remembered(instants_of(model, self.schedule))
        self.signature = _signature(model, self.schedule)
        self.expires = utc(model.expires) if model.expires else None
        self._rules: tuple[tuple[Misfire, str], EntryOptions] | None = None
        #: From when on it is owed its instants if it is new or edited; set by whoever reads the rows.
        self.since: datetime | None = None
        self.once = bool(model.one_off) or isinstance(self.schedule, clocked)
        self.note(last_run_at, int(model.total_run_count), model.date_changed)

    def note(self, last_run_at: datetime | None, total_run_count: int, changed: datetime | None) -> None:
        """What the row says of its runs."""
        self.row_last_run_at = None if last_run_at is None else utc(last_run_at)
        self.total_run_count = total_run_count
        self.row_run_count = total_run_count
        if last_run_at is not None:
            self.stored_last_run_at: datetime | None = utc(last_run_at)
        elif total_run_count and changed is not None:
            # It ran before; the instant is cleared only when a row is disabled. So it was off, and owes nothing.
            self.stored_last_run_at = _changed_at(changed)
        else:
            self.stored_last_run_at = None

    def seen(self, changed: datetime | None, looked_before: datetime | None, now: datetime) -> None:
        """It is new, edited, or on again, which it was not at the look before."""
        if isinstance(self.schedule, clocked):
            # Meant for one instant, it is owed that one, even if the row was saved a moment too late.
            self.since = utc(self.schedule.clocked_time) - timedelta(microseconds=1)
        elif changed is not None and (looked_before is not None or not self.total_run_count):
            self.since = min(max(_changed_at(changed), looked_before or NEVER), now)

    def rules(self, misfire: Misfire, uncertain: str) -> EntryOptions:
        """Its own rules, with the cluster's where it has none. Raises ConfigurationError."""
        if self._rules is None or self._rules[0] != (misfire, uncertain):
            own = EntryOptions.of(self.name, self.options, misfire, starting_deadline(self), uncertain)
            self._rules = ((misfire, uncertain), own)
        return self._rules[1]

    def is_due(self) -> schedstate:
        """Celery's own question, answered without writing anything."""
        state: schedstate = self.schedule.is_due(self.last_run_at)
        return state

    def save(self) -> None:
        """Do nothing: rows are written in bulk."""

    def _disable(self, model: Any) -> None:  # noqa: ARG002 -- the base class calls it
        raise UnreadableRow("its arguments or keyword arguments are not JSON, or its schedule was removed")


def _changed_at(value: datetime) -> datetime:
    # Django, not Celery, writes this column: a naive value is in Django's time zone.
    return (timezone.make_aware(value) if value.tzinfo is None else value).astimezone(UTC)


def _signature(model: Any, source: Any) -> str:
    """Tells the row's schedule from another; the same in every process."""
    parts: tuple[object, ...]
    if isinstance(source, clocked):
        parts = (utc(source.clocked_time),)
    elif isinstance(source, crontab):
        fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        parts = (*(getattr(source, f"_orig_{name}") for name in fields), source.tz)
    elif isinstance(source, solar):
        parts = (source.event, float(source.lat), float(source.lon))
    elif isinstance(source, schedule):
        every: Any = source.run_every  # type: ignore[attr-defined]
        parts = (every,)
    else:
        parts = (repr(source),)
    start = utc(model.start_time) if model.start_time else ""
    text = " ".join(str(part) for part in (type(source).__name__, *parts, start))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def misfire_headers(headers: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A row's headers with these rules of its own; without any where ``own`` is empty."""
    rest = {name: value for name, value in headers.items() if name != KEY}
    return {**rest, KEY: dict(own)} if own else rest
