"""Example project of the README and the Compose file, run as a user runs it."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from tests.faults.cluster import base_environment
from tests.support.commands import DEPLOY, output
from tests.support.servers import LOCALHOST, PartMissing, Postgres, RedisServer, ServerProcess, need, wait_for

pytestmark = pytest.mark.slow

EXAMPLE = DEPLOY / "example"


def _have(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise PartMissing(f"the example project needs {module}")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    need(lambda: _have("django", "django_celery_beat", "ephem"))
    database = f"sqlite:///{tmp_path / 'example.sqlite3'}"
    return base_environment({"DJANGO_SETTINGS_MODULE": "example.settings", "DATABASE_URL": database})


@pytest.fixture
def migrated(env: dict[str, str]) -> dict[str, str]:
    """Return the environment, with a database that has all tables."""
    run(env, "manage.py", "migrate", "--verbosity", "0")
    return env


def run(env: dict[str, str], *arguments: str) -> str:
    """Run Python in the example's folder and return its output."""
    return output(sys.executable, *arguments, cwd=EXAMPLE, env=env)


def answer(env: dict[str, str], code: str) -> str:
    """Return what the code prints once Django is set up."""
    return run(env, "-c", f"import django; django.setup()\n{dedent(code)}").strip()


@contextmanager
def beats(env: dict[str, str], folder: Path, count: int, *options: str) -> Iterator[list[ServerProcess]]:
    command = [sys.executable, "-m", "celery", "-A", "example", "beat", "--pidfile=", *options]
    started = [ServerProcess(command, folder / f"beat-{number}.log", cwd=EXAMPLE, env=env) for number in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.stop()


def test_system_checks_pass(env):
    env["SCHEDULE"] = "database"
    assert "no issues" in run(env, "manage.py", "check", "--fail-level", "WARNING")


def test_celery_reads_all_kinds_of_schedule(env):
    report = run(env, "-m", "celery", "-A", "example", "report")
    assert "polls.tasks.task_clear_session" in report
    assert "<crontab: */15" in report
    assert "<solar: sunset" in report


def test_schedule_names_only_existing_tasks(env):
    code = """
        from example import celery_app as app
        app.loader.import_default_modules()
        print({entry["task"] for entry in app.conf.beat_schedule.values()} - set(app.tasks))
    """
    assert answer(env, code) == "set()"


def test_task_deletes_expired_sessions(migrated):
    code = """
        import datetime
        from django.contrib.sessions.models import Session
        from django.utils import timezone
        from polls.tasks import task_clear_session
        day = datetime.timedelta(days=1)
        Session.objects.create(session_key="old", session_data="", expire_date=timezone.now() - day)
        Session.objects.create(session_key="new", session_data="", expire_date=timezone.now() + day)
        task_clear_session()
        print(list(Session.objects.values_list("session_key", flat=True)))
    """
    assert answer(migrated, code) == "['new']"


POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "n", "USER": "u", "PASSWORD": "p@ss", "HOST": "h"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////data/a.sqlite3", {"ENGINE": "django.db.backends.sqlite3", "NAME": "/data/a.sqlite3"}),
        ("postgresql://u:p%40ss@h:5432/n", {**POSTGRESQL, "PORT": 5432}),
    ],
)
def test_database_is_parsed_from_its_url(env, url, expected):
    code = f"from example.database import database_from_url as f; print(f({url!r}) == {expected!r})"
    assert run(env, "-c", code).strip() == "True"


@pytest.mark.parametrize(
    ("kind", "options", "header", "name"),
    [
        ("static", ["-S", "ha_beat.scheduler:HAScheduler"], "task", "polls.tasks.task_clear_session"),
        ("database", [], "periodic_task_name", "clear-sessions"),
    ],
)
def test_two_beats_enqueue_each_instant_once(
    migrated, tmp_path, redis_server: RedisServer, kind, options, header, name
):
    """With the database schedule, the leader first writes the entries of the settings to it."""
    env = {**migrated, "REDIS_URL": redis_server.url, "SCHEDULE": kind}
    with beats(env, tmp_path, 2, *options) as started:
        wait_for(lambda: redis_server.admin.llen("celery") >= 2, timeout=60, what="two messages")
        assert all(process.alive for process in started), [process.log_tail() for process in started]
        headers = [json.loads(message)["headers"] for message in redis_server.admin.lrange("celery", 0, -1)]
        # Another entry is due as well at a full quarter of an hour.
        assert name in {each[header] for each in headers}
        instants = [(each[header], each["ha_beat"]["scheduled_at"]) for each in headers]
        assert len(set(instants)) == len(instants)


def test_transactions_of_worker_beats_and_admin_take_turns(migrated):
    """A transaction on their SQLite file that reads before it writes must not find it locked."""
    import django

    if django.VERSION < (5, 1):
        pytest.skip("needs Django 5.1")
    code = """
        import sqlite3
        from django.db import connection, transaction
        from django.contrib.sessions.models import Session
        other = sqlite3.connect(connection.settings_dict["NAME"], timeout=0.1)
        with transaction.atomic():
            Session.objects.count()
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as exc:
                print(exc)
    """
    assert answer(migrated, code) == "database is locked"


@pytest.mark.parametrize("kind", ["static", "database"])
def test_checks_pass_with_either_schedule(migrated, kind):
    env = {**migrated, "SCHEDULE": kind}
    assert "Traceback" not in run(env, "manage.py", "check", "--database", "default", "--fail-level", "WARNING")


def test_command_of_the_readme_creates_the_admins_user(migrated):
    line = next(line for line in (EXAMPLE / "README.md").read_text().splitlines() if "createsuperuser" in line)
    setting, _, command = line.partition(" ")
    name, _, password = setting.partition("=")
    run(migrated | {name: password}, *command.split()[1:])
    code = f"""
        from django.contrib.auth import authenticate
        print(authenticate(username="admin", password={password!r}).is_superuser)
    """
    assert answer(migrated, code) == "True"


def test_example_runs_on_postgresql(env, tmp_path, redis_server: RedisServer):
    need(lambda: _have("psycopg"))
    with need(Postgres) as server:
        url = f"postgresql://postgres:@{LOCALHOST}:{server.port}/postgres"
        env |= {"REDIS_URL": redis_server.url, "SCHEDULE": "database", "DATABASE_URL": url}
        run(env, "manage.py", "migrate", "--verbosity", "0")
        with beats(env, tmp_path, 1):
            wait_for(lambda: redis_server.admin.llen("celery") >= 1, timeout=60, what="a message")
