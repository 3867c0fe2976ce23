"""Scheduler class for sqlalchemy-celery-beat."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

from celery import Celery
from celery.beat import Scheduler
from sqlalchemy.exc import ArgumentError
from sqlalchemy_celery_beat.models import PeriodicTask
from sqlalchemy_celery_beat.schedulers import DEFAULT_BEAT_DBURI, DEFAULT_MAX_INTERVAL, DatabaseScheduler

from ha_beat.errors import ConfigurationError
from ha_beat.exception_text import without_secrets
from ha_beat.row_store.backend import RowStore
from ha_beat.row_store.source import RowSource
from ha_beat.sqlalchemy.database import SqlDatabase
from ha_beat.sqlalchemy.entries import RowEntry
from ha_beat.sqlalchemy.queries import SqlQueries, last_runs
from ha_beat.sqlalchemy.statements import SqlStatements
from ha_beat.sqlalchemy.static_entries import SqlStaticRows
from ha_beat.stored_scheduler import StoredScheduler

__all__ = ["HADatabaseScheduler"]


def database_of(app: Celery, model: Any = PeriodicTask, **own: Any) -> SqlDatabase:
    """Return the database of the settings. ``own`` overrides them.

    Raises:
        ConfigurationError: ``beat_dburi`` is not the URL of a database, or its driver can't be used.
    """
    uri, schema, options = (
        own.get(name) or app.conf.get(f"beat_{name}") for name in ("dburi", "schema", "engine_options")
    )
    uri = str(uri or DEFAULT_BEAT_DBURI)
    try:
        return SqlDatabase(uri, schema, options or {}, model.metadata)
    except (ArgumentError, ImportError) as exc:
        # A text that is not a URL may hold a password, too. Older versions of SQLAlchemy quote it.
        text = without_secrets(str(exc).replace(uri, "…"))
        raise ConfigurationError(f"beat_dburi can't be used: {text}") from exc


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
        try:
            self.database = database_of(app, self.Model, **own)
        except ConfigurationError as exc:
            raise SystemExit(f"ha_beat can't start: {exc}") from exc
        Scheduler.__init__(self, app, **kwargs)
        self.max_interval = kwargs.get("max_interval") or app.conf.beat_max_loop_interval or DEFAULT_MAX_INTERVAL


class HADatabaseScheduler(StoredScheduler, _Unconnected):
    """Highly available scheduler for sqlalchemy-celery-beat's schedule.

    Use it with ``celery beat -S ha_beat.sqlalchemy``. The models and their settings are those of
    sqlalchemy-celery-beat. Two threads (:mod:`ha_beat.row_store.sync`) read the database and, on the leader, write.
    """

    Entry = RowEntry

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
