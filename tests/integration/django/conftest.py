"""Django sites for the tests, each with a separate database."""

import functools
import importlib.util
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import Postgres, RedisServer, wait_for

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
        # Processes of other tests inherit the environment.
        del os.environ["DJANGO_SETTINGS_MODULE"]


if all(importlib.util.find_spec(module) for module in ("django", "django_celery_beat")):
    # Models can't be imported before this.
    _set_up()
elif os.environ.get("CI") != "true":
    collect_ignore_glob = ["test_*.py"]


def use(database: Mapping[str, Any]) -> None:
    """Connect this process' Django to the database."""
    from django.db import connections

    connections.close_all()
    connections.settings["default"] = connections.configure_settings({"default": dict(database)})["default"]
    if hasattr(connections._connections, "default"):
        del connections["default"]


def create_staff(*permissions: str, superuser: bool = False) -> Any:
    """Create the user kim (again), whose password is kim, a member of staff with these permissions."""
    from django.contrib.auth.models import Permission, User

    User.objects.filter(username="kim").delete()
    user = User.objects.create_user("kim", password="kim", is_staff=True, is_superuser=superuser)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    return user


def migrate() -> None:
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


class Site:
    """Django project with one database and one Redis."""

    def __init__(self, database: Mapping[str, Any], redis: RedisServer, server: Postgres | None = None) -> None:
        self.database = dict(database)
        self.redis = redis
        self.server = server

    def env(self, **settings: Any) -> dict[str, str]:
        """Return the environment of a process of this project; ``settings`` are Django's."""
        return {
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "SITE_DATABASE": json.dumps(self.database),
            "SITE_SETTINGS": json.dumps(settings),
            "BROKER_URL": self.redis.url,
        }

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """Return the headers of the messages in a queue, oldest first."""
        return [json.loads(raw)["headers"] for raw in reversed(self.redis.client().lrange(queue, 0, -1))]

    def names(self, queue: str = "celery") -> list[str]:
        """Return the periodic task's name of each message."""
        return [headers["periodic_task_name"] for headers in self.messages(queue)]

    def instants(self, name: str) -> list[datetime]:
        """Return the due time of each message of this task."""
        found = [headers for headers in self.messages() if headers["periodic_task_name"] == name]
        return [datetime.fromisoformat(headers["ha_beat"]["scheduled_at"]) for headers in found]

    def clear(self) -> None:
        """Delete all messages."""
        self.redis.client().delete("celery")

    def wait_for(self, *names: str, within: float = 40, queue: str = "celery") -> None:
        """Wait for a message of each of these tasks; without names, for any message."""
        what = f"messages of {names or 'any task'}"
        wait_for(lambda: set(names) <= (found := set(self.names(queue))) and bool(found), within, what, 0.05)

    def wait_for_count(self, count: int) -> None:
        """Wait until there are exactly this many messages."""
        wait_for(lambda: len(self.names()) == count, 40, f"{count} messages", 0.001)

    def wait_for_more(self, count: int, name: str = "", within: float = 30) -> None:
        """Wait for ``count`` more messages of this task; without a name, of any task."""

        def messages() -> int:
            names = self.names()
            return names.count(name) if name else len(names)

        before = messages()
        wait_for(lambda: messages() >= before + count, within, f"{count} more messages", 0.02)

    def assert_each_once(self, name: str, seconds: float) -> None:
        """Each due time from the first message to the last has exactly one message."""
        found = self.instants(name)
        assert [b - a for a, b in pairwise(found)] == [timedelta(seconds=seconds)] * (len(found) - 1)

    def assert_none_twice(self, name: str) -> None:
        found = self.instants(name)
        assert len(found) == len(set(found))


SQLITE: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = tmp_path_factory.mktemp("site") / "template.sqlite3"
    use({**SQLITE, "NAME": str(template)})
    migrate()
    use(SQLITE)
    return template


@functools.cache
def _migrated(server: Postgres) -> dict[str, Any]:
    """Return a new database `site` with Django's tables."""
    # One that a failed migration has left.
    server.execute("DROP DATABASE IF EXISTS site WITH (FORCE)", "CREATE DATABASE site")
    database = {**server.django_database, "NAME": "site"}
    use(database)
    migrate()
    return database


def _empty_tables() -> None:
    from django.db import connection

    kept = {"django_migrations", "django_content_type", "auth_permission"}
    tables = set(connection.introspection.django_table_names(only_existing=True)) - kept
    with connection.cursor() as cursor:
        # A transaction of an earlier test would lock them.
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'site' AND pid <> pg_backend_pid()"
        )
        cursor.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")


@pytest.fixture
def site(_migrated_sqlite: Path, tmp_path: Path, shared_redis: RedisServer) -> Iterator[Site]:
    """A site on SQLite."""
    path = shutil.copy(_migrated_sqlite, tmp_path / "site.sqlite3")
    # The usual mode for several processes.
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    database = {**SQLITE, "NAME": str(path), "OPTIONS": {"timeout": 20}}
    use(database)
    yield Site(database, shared_redis)
    use(SQLITE)


@pytest.fixture
def postgres_site(session_postgres: Postgres, shared_redis: RedisServer) -> Iterator[Site]:
    """A site on the session's PostgreSQL, with empty tables."""
    database = _migrated(session_postgres)
    use(database)
    _empty_tables()
    yield Site(database, shared_redis, session_postgres)
    use(SQLITE)


@pytest.fixture(params=["site", "postgres_site"], ids=["sqlite", "postgres"])
def any_site(request: pytest.FixtureRequest) -> Site:
    """A site on each database."""
    return request.getfixturevalue(request.param)
