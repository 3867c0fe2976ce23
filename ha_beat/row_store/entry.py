"""Rows as entries of the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from celery.app import app_or_default
from celery.schedules import schedstate

from ha_beat.errors import HaBeatError
from ha_beat.row_store.backend import RunState
from ha_beat.row_store.instants import clocked_time_of, instants_of, schedule_instants, utc
from ha_beat.schedule.entry_options import KEY, EntryOptions
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule_sources.signatures import short_digest

#: Longest time until the next check of an entry whose class overrides ``is_due``.
_CHECK_AT_LATEST = timedelta(days=1)

#: Conditions on the columns of a row and of its schedule.
Columns = tuple[tuple[str, Any], ...]


class UnreadableRow(HaBeatError):
    """Row that can't be scheduled: its arguments are not JSON, or it has no schedule."""


class SharedSchedule:
    """Schedule that rows of one app share, with the values computed from it."""

    def __init__(self, schedule: Any, columns: Columns, app: Any) -> None:
        """Compute the values. ``columns`` are conditions that select the rows with this schedule.

        Raises:
            ValueError: the interval is not positive.
            TypeError: the kind of schedule is unknown.
            Exception: any error of a schedule with impossible values.
        """
        schedule.app = app
        self.schedule = schedule
        self.columns = columns
        self.instants = schedule_instants(schedule)
        self.signature = short_digest(self.instants.identity)
        self.is_clocked = clocked_time_of(schedule) is not None


#: Modules of classes whose instances have equal schedules if these columns are equal.
_STOCK = frozenset(
    {
        *("django_celery_beat.models", "sqlalchemy_celery_beat.models"),
        *("ha_beat.django.entries", "ha_beat.sqlalchemy.entries"),
    }
)

#: Schedules in use, by app, model and columns.
_SHARED: WeakValueDictionary[tuple[Any, type, Columns], SharedSchedule] = WeakValueDictionary()


def shared_schedule(entry: type, model: Any, source: Any, columns: Columns, app: Any) -> SharedSchedule:
    """Return the schedule of a row, which all rows with these columns share.

    The rows of a project's own class share no schedule, because it may have more columns or change the schedule. Raises
    the errors of :class:`SharedSchedule`.

    Args:
        entry: Class of the entry.
        model: The row.
        source: Model of its schedule.
        columns: Conditions that select the rows with this schedule.
        app: App of the entry, or ``None``.
    """
    app = app_or_default(app)
    if not all(each.__module__ in _STOCK for each in (entry, type(model), type(source))):
        return SharedSchedule(model.schedule, columns, app)
    key = (app, type(source), columns)
    found = _SHARED.get(key)
    if found is None:
        found = _SHARED[key] = SharedSchedule(source.schedule, columns, app)
    return found


class ModelView:
    """Model of a row with its schedule. The assignments of a store's own ``ModelEntry`` do not reach the model."""

    def __init__(self, model: Any, schedule: Any) -> None:
        # A copy is the quickest way, because most columns are read once.
        vars(self).update(vars(model))
        self._model = model
        self.schedule = schedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class RowEntry:
    """Entry of one row. Unlike the ``ModelEntry`` of a store's own scheduler it never writes to the database.

    A store adds its ``ModelEntry`` as the second base class, and calls :meth:`read_row`. The key ``ha_beat`` of the
    row's headers holds the entry's own misfire rules. It is removed from the message.

    Attributes:
        id: Primary key as a text, which is the entry's id in the ledger. The subclass sets it.
        instants: Due instants.
        signature: Digest of the schedule, the same in every process.
        expires: End of the schedule in UTC, or ``None``.
        once: True if the entry ends after one run.
        shared: Schedule of the row.
        since: Time from which a new or edited entry is owed its instants; ``None`` for other entries.
        run_state: ``last_run_at`` in UTC and ``total_run_count`` of the row. Two threads replace it as a whole.
        rules: The entry's own rules, completed by the cluster's. The source sets them.
        stored_last_run_at: Time until which the row counts as run, or ``None``.
    """

    app: Any
    model: Any
    id: str
    name: str
    schedule: Any
    options: dict[str, Any]
    last_run_at: datetime
    total_run_count: int
    rules: EntryOptions

    def read_row(self, model: Any, shared: SharedSchedule) -> None:
        """Set the attributes from the row, once those of the base class are set."""
        headers: dict[str, Any] = self.options["headers"]
        own = headers.pop(KEY, None)
        if own is not None:
            self.options[KEY] = own
        self.model, self.shared = model, shared
        self.instants = instants_of(model, shared.instants)
        identity = self.instants.identity if model.start_time else None
        self.signature = shared.signature if identity is None else short_digest(identity)
        self.expires = utc(model.expires) if model.expires else None
        self.since: datetime | None = None
        self.once = bool(model.one_off) or shared.is_clocked
        self.update_run_state(model.last_run_at, int(model.total_run_count), model.date_changed)

    @property
    def schedule_columns(self) -> Columns:
        """Return conditions that select the row while it has this schedule."""
        return (("one_off", self.model.one_off), ("start_time", self.model.start_time), *self.shared.columns)

    @staticmethod
    def changed_at(value: datetime) -> datetime:
        """Return ``date_changed`` in UTC."""
        return utc(value)

    def update_run_state(self, last_run_at: datetime | None, total_run_count: int, changed: datetime | None) -> None:
        """Set the run state from the row's columns."""
        self.run_state: RunState = (None if last_run_at is None else utc(last_run_at), total_run_count)
        self.total_run_count = total_run_count
        if last_run_at is not None:
            self.stored_last_run_at: datetime | None = utc(last_run_at)
        elif total_run_count and changed is not None:
            # Disabling a row clears its last run. Nothing is owed for the time until the last change.
            self.stored_last_run_at = self.changed_at(changed)
        else:
            self.stored_last_run_at = None

    def mark_edited(self, changed: datetime | None, checked_before: datetime | None, now: datetime) -> None:
        """Set ``since`` of a row that is new, edited or enabled again.

        Args:
            changed: ``date_changed`` of the row.
            checked_before: Time of the last check, which found the row unchanged; ``None`` at the first.
            now: The scheduling time.
        """
        if changed is not None and (checked_before is not None or not self.total_run_count):
            self.since = min(max(self.changed_at(changed), checked_before or NEVER), now)

    def is_due(self) -> schedstate:
        """Return Celery's ``schedstate`` by the row's instants, without writing anything.

        Only a scheduler class or an entry class that overrides ``is_due`` calls this.
        """
        now = utc(self.app.now())
        following = min(self.instants.next_after(now), now + _CHECK_AT_LATEST)
        return schedstate(self.instants.next_after(utc(self.last_run_at)) <= now, (following - now).total_seconds())

    def save(self) -> None:
        """Do nothing: rows are written in bulk."""

    def _disable(self, model: Any) -> None:  # noqa: ARG002 -- the base class calls it
        raise UnreadableRow("its arguments or keyword arguments are not JSON, or its schedule was removed")


def misfire_headers(headers: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's headers with the misfire rules ``own``; without the key ``ha_beat`` if there are none."""
    rest = {name: value for name, value in headers.items() if name != KEY}
    return {**rest, KEY: dict(own)} if own else rest
