"""Scheduler class for sqlalchemy-celery-beat."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from celery import Celery
from celery.beat import Scheduler
from sqlalchemy_celery_beat.models import PeriodicTask
from sqlalchemy_celery_beat.schedulers import DEFAULT_BEAT_DBURI, DEFAULT_MAX_INTERVAL, DatabaseScheduler

from ha_beat.row_store.backend import RowStore
from ha_beat.row_store.source import RowSource
from ha_beat.scheduler import HAMixin
from ha_beat.sqlalchemy.database import SqlDatabase
from ha_beat.sqlalchemy.entries import RowEntry
from ha_beat.sqlalchemy.queries import SqlQueries, last_runs
from ha_beat.sqlalchemy.statements import SqlStatements
from ha_beat.sqlalchemy.static_entries import SqlStaticRows

__all__ = ["HADatabaseScheduler"]


def database_of(app: Celery, model: Any = PeriodicTask, **own: Any) -> SqlDatabase:
    """Return the database that the settings name. ``own`` has values that replace them.

    Raises:
        sqlalchemy.exc.ArgumentError: ``beat_dburi`` is no URL of a database.
        ImportError: its driver is not installed.
    """
    uri, schema, options = (
        own.get(name) or app.conf.get(f"beat_{name}") for name in ("dburi", "schema", "engine_options")
    )
    return SqlDatabase(str(uri or DEFAULT_BEAT_DBURI), schema, options or {}, model.metadata)


def stored_last_runs(app: Celery) -> dict[str, tuple[datetime, int]]:
    """Return the last run in UTC and the run count of each enabled task that has run, by name."""
    database = database_of(app)
    try:
        return last_runs(database, PeriodicTask)
    finally:
        database.close()


class DatabaseSource(RowSource):
    """Schedule source for sqlalchemy-celery-beat's rows."""

    stock = ("celery.beat", "sqlalchemy_celery_beat.schedulers")
    unused = ("all_as_schedule", "schedule_changed", "schedules_equal")


class _Unconnected(DatabaseScheduler):  # type: ignore[misc]  # sqlalchemy-celery-beat has no types
    """Scheduler of sqlalchemy-celery-beat whose constructor does not connect."""

    def __init__(self, app: Celery, **kwargs: Any) -> None:
        self.app = app
        own = {name: kwargs.get(name) for name in ("dburi", "schema", "engine_options")}
        self.database = database_of(app, self.Model, **own)
        Scheduler.__init__(self, app, **kwargs)
        self.max_interval = kwargs.get("max_interval") or app.conf.beat_max_loop_interval or DEFAULT_MAX_INTERVAL


class HADatabaseScheduler(HAMixin, _Unconnected):
    """Highly available scheduler for sqlalchemy-celery-beat's schedule.

    Use it with ``celery beat -S ha_beat.sqlalchemy``. The models and their settings are sqlalchemy-celery-beat's, and
    so is their meaning. Two threads (:mod:`ha_beat.row_store.sync`) read the database and, on the leader, write to it.
    """

    Entry = RowEntry
    schedule_source: DatabaseSource

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        if not issubclass(self.Entry, RowEntry):
            kind, entry = type(self).__name__, self.Entry.__name__
            raise SystemExit(
                f"ha_beat can't start: {kind}.Entry is {entry}, which does not inherit from "
                f"ha_beat.sqlalchemy.entries.RowEntry: each check of an entry would write to its row"
            )
        super().__init__(app, *args, **kwargs)

    # --- Overrides of DatabaseScheduler's access to the database

    def setup_schedule(self) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    def sync(self) -> None:
        """Do nothing: the sync thread writes the rows soon after each dispatch."""

    def update_from_dict(self, mapping: Mapping[str, Any]) -> None:
        """Do nothing: the leader writes the entries of the settings."""

    @property
    def schedule(self) -> dict[str, RowEntry]:  # type: ignore[override]
        """Return the entries as last read, by name."""
        return self.schedule_source.entries

    # --- Hooks of HAMixin

    def entry_id(self, entry: Any) -> str:
        return str(entry.id)

    def stored_last_run_at(self, entry: Any) -> datetime | None:
        stored: datetime | None = entry.stored_last_run_at
        return stored

    def row_store(self) -> RowStore:
        """Return the parts that read and write sqlalchemy-celery-beat's tables."""
        database = self.database
        return RowStore(
            database,
            SqlQueries(database, self.Model, self.Changes),
            SqlStatements(database, self.Model, self.Changes),
            SqlStaticRows(database, self.Model),
            partial(self.Entry, app=self.app),
        )

    def _new_schedule_source(self) -> DatabaseSource:
        return DatabaseSource(self)
