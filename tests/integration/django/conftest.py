"""A Django site for each test, with a database of its own, and beats that read it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import PartMissing, Postgres, RedisServer, need

SETTINGS = "tests.integration.django.project.settings"


def _set_up() -> None:
    import django
    from django.conf import settings

    if settings.configured:
        return
    os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
    try:
        django.setup()
    finally:
        # Other tests start processes that inherit the environment.
        del os.environ["DJANGO_SETTINGS_MODULE"]


if all(importlib.util.find_spec(module) for module in ("django", "django_celery_beat")):
    # Here, since models can't be imported before.
    _set_up()
elif os.environ.get("CI") != "true":
    collect_ignore_glob = ["test_*.py"]


def use(database: Mapping[str, Any]) -> None:
    """Have this process' Django talk to this database."""
    from django.db import connections

    connections.close_all()
    connections.settings["default"] = connections.configure_settings({"default": dict(database)})["default"]
    if hasattr(connections._connections, "default"):
        del connections["default"]


def migrate() -> None:
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


class Site:
    """A Django project on one database and one Redis."""

    def __init__(self, database: Mapping[str, Any], redis: RedisServer, server: Postgres | None = None) -> None:
        self.database = dict(database)
        self.redis = redis
        self.server = server

    def env(self, **settings: Any) -> dict[str, str]:
        """The environment of a process of this project; ``settings`` are Django's."""
        return {
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "SITE_DATABASE": json.dumps(self.database),
            "SITE_SETTINGS": json.dumps(settings),
            "BROKER_URL": self.redis.url,
        }

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """The headers of the messages in a queue, oldest first."""
        return [json.loads(raw)["headers"] for raw in reversed(self.redis.client().lrange(queue, 0, -1))]

    def names(self, queue: str = "celery") -> list[str]:
        """Which periodic task each message is of."""
        return [headers["periodic_task_name"] for headers in self.messages(queue)]


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = tmp_path_factory.mktemp("site") / "template.sqlite3"
    use({"ENGINE": "django.db.backends.sqlite3", "NAME": str(template)})
    migrate()
    use({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})
    return template


def _sqlite(template: Path, folder: Path) -> dict[str, Any]:
    path = folder / "site.sqlite3"
    shutil.copy(template, path)
    # As anybody would who has more than one process on it.
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": {"timeout": 20}}


@pytest.fixture
def site(_migrated_sqlite: Path, tmp_path: Path, redis_server: RedisServer) -> Iterator[Site]:
    """A site on SQLite."""
    database = _sqlite(_migrated_sqlite, tmp_path)
    use(database)
    yield Site(database, redis_server)
    use({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})


@pytest.fixture
def postgres_site(redis_server: RedisServer) -> Iterator[Site]:
    """A site on a PostgreSQL server of its own."""
    need(_psycopg)
    with need(Postgres) as server:
        use(server.django_database)
        migrate()
        yield Site(server.django_database, redis_server, server)
        use({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})


def _psycopg() -> None:
    if importlib.util.find_spec("psycopg") is None and importlib.util.find_spec("psycopg2") is None:
        raise PartMissing("PostgreSQL needs psycopg")


@pytest.fixture(params=["sqlite", "postgres"])
def any_site(request: pytest.FixtureRequest) -> Site:
    """The same test on each database."""
    name = "site" if request.param == "sqlite" else "postgres_site"
    return request.getfixturevalue(name)
