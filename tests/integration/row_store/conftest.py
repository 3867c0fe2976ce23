"""The stores of rows, each on SQLite and on PostgreSQL, behind one interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from celery import Celery

from ha_beat.row_store.backend import RowStore
from ha_beat.row_store.instants import utc
from tests.support.servers import Postgres

State = tuple[bool, datetime | None, int]


class Rows(Protocol):
    """Rows of a store as a test changes and sees them, by name."""

    app: Celery

    def store(self) -> RowStore: ...

    def add(self, name: str, kind: str = "interval", schedule: Any = None, **fields: Any) -> None:
        """Save a row of the task `tick`; the default schedule is an interval of a minute."""

    def save(self, name: str, **fields: Any) -> None: ...

    def update_in_bulk(self, **fields: Any) -> None:
        """Update all rows in one statement, without marking a change."""

    def execute(self, statement: str) -> None: ...

    def delete(self, name: str) -> None: ...

    def state(self) -> dict[str, State]:
        """Return for each row whether it is enabled, its last run and its run count."""

    def id(self, name: str) -> str: ...

    def column(self, name: str, column: str) -> Any: ...

    def locked(self, statement: str) -> Any:
        """Return a block during which the transaction of this statement stays open."""


class DjangoRows:
    """Rows of django-celery-beat."""

    table, marks = "django_celery_beat_periodictask", "django_celery_beat_periodictasks"

    def __init__(self) -> None:
        from tests.integration.django.project.app import app

        self.app = app

    @property
    def model(self) -> Any:
        from django_celery_beat.models import PeriodicTask

        return PeriodicTask

    def store(self) -> RowStore:
        from django_celery_beat.models import PeriodicTasks

        from ha_beat.django.database import DjangoDatabase
        from ha_beat.django.entries import RowEntry
        from ha_beat.django.queries import DjangoQueries
        from ha_beat.django.statements import DjangoStatements
        from ha_beat.django.static_entries import DjangoStaticRows

        return RowStore(
            DjangoDatabase(list),
            DjangoQueries(PeriodicTasks, lambda: self.model.objects.filter(enabled=True)),
            DjangoStatements(self.model, PeriodicTasks),
            DjangoStaticRows(self.model),
            partial(RowEntry, app=self.app),
        )

    def add(self, name: str, kind: str = "interval", schedule: Any = None, **fields: Any) -> None:
        from django_celery_beat import models

        model = getattr(models, f"{kind.capitalize()}Schedule")
        values = schedule or {"every": 60, "period": "seconds"}
        made = model.objects.filter(**values).first() or model.objects.create(**values)
        self.model.objects.create(name=name, task="tick", **{kind: made}, **fields)

    def save(self, name: str, **fields: Any) -> None:
        row = self.model.objects.get(name=name)
        for field, value in fields.items():
            setattr(row, field, value)
        row.save()

    def update_in_bulk(self, **fields: Any) -> None:
        self.model.objects.update(**fields)

    def execute(self, statement: str) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(statement)

    def delete(self, name: str) -> None:
        self.model.objects.get(name=name).delete()

    def state(self) -> dict[str, State]:
        rows = self.model.objects.values_list("name", "enabled", "last_run_at", "total_run_count")
        return {name: (enabled, last, count) for name, enabled, last, count in rows}

    def id(self, name: str) -> str:
        return str(self.model.objects.get(name=name).pk)

    def column(self, name: str, column: str) -> Any:
        return getattr(self.model.objects.get(name=name), column)

    @contextmanager
    def locked(self, statement: str) -> Iterator[None]:
        from django.db import connections

        other: Any = connections.create_connection("default")
        try:
            other.set_autocommit(False)
            with other.cursor() as cursor:
                cursor.execute(statement)
            yield
        finally:
            other.close()


class SqlRows:
    """Rows of sqlalchemy-celery-beat."""

    table, marks = "celery_periodictask", "celery_periodictaskchanged"

    def __init__(self, url: str, schema: str | None = None) -> None:
        from sqlalchemy_celery_beat import models
        from sqlalchemy_celery_beat.session import SessionManager

        self.models = models
        self.app = Celery("rows", broker="redis://localhost:6379/0", set_as_current=False)
        self.app.conf.update(beat_dburi=url, beat_schema=schema, timezone="UTC", result_expires=None)
        # As a project's own code does.
        manager = SessionManager()
        self.engine, self.session = manager.create_session(url, schema=schema)
        manager.prepare_models(self.engine, schema=schema)

    def store(self) -> RowStore:
        from ha_beat.sqlalchemy.schedulers import HADatabaseScheduler

        scheduler: Any = HADatabaseScheduler(app=self.app, lazy=True)
        store: RowStore = scheduler.row_store()
        store.database.refresh()
        return store

    def add(self, name: str, kind: str = "interval", schedule: Any = None, **fields: Any) -> None:
        model: Any = getattr(self.models, f"{kind.capitalize()}Schedule")
        values = schedule or {"every": 60, "period": "seconds"}
        with self.session() as session:
            made = session.query(model).filter_by(**values).first() or model(**values)
            session.add(made)
            session.flush()
            session.add(self.models.PeriodicTask(name=name, task="tick", schedule_model=made, **fields))
            session.commit()

    def save(self, name: str, **fields: Any) -> None:
        with self.session() as session:
            row = session.query(self.models.PeriodicTask).filter_by(name=name).one()
            for field, value in fields.items():
                setattr(row, field, value)
            session.commit()

    def update_in_bulk(self, **fields: Any) -> None:
        with self.session() as session:
            task = self.models.PeriodicTask
            session.query(task).update({"date_changed": task.date_changed, **fields}, synchronize_session=False)
            session.commit()

    def execute(self, statement: str) -> None:
        from sqlalchemy import text

        with self.engine.begin() as connection:
            connection.execute(text(statement))

    def delete(self, name: str) -> None:
        with self.session() as session:
            session.delete(session.query(self.models.PeriodicTask).filter_by(name=name).one())
            session.commit()

    def state(self) -> dict[str, State]:
        with self.session() as session:
            rows = session.query(self.models.PeriodicTask)
            return {
                row.name: (row.enabled, row.last_run_at and utc(row.last_run_at), row.total_run_count) for row in rows
            }

    def id(self, name: str) -> str:
        return str(self.column(name, "id"))

    def column(self, name: str, column: str) -> Any:
        with self.session() as session:
            return getattr(session.query(self.models.PeriodicTask).filter_by(name=name).one(), column)

    @contextmanager
    def locked(self, statement: str) -> Iterator[None]:
        from sqlalchemy import text

        with self.engine.connect() as other:
            other.execute(text(statement))
            yield


@pytest.fixture(params=["django-sqlite", "django-postgres", "sqlalchemy-sqlite", "sqlalchemy-postgres"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """The empty rows of a store."""
    store, database = request.param.split("-")
    if store == "django":
        pytest.importorskip("django_celery_beat")
        request.getfixturevalue({"sqlite": "site", "postgres": "postgres_site"}[database])
        yield DjangoRows()
        return
    pytest.importorskip("sqlalchemy_celery_beat")
    if database == "sqlite":
        yield SqlRows(f"sqlite:///{tmp_path}/rows.db")
        return
    server: Postgres = request.getfixturevalue("session_postgres")
    made = SqlRows(server.sqlalchemy_url)
    yield made
    made.models.ModelBase.metadata.drop_all(made.engine)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
