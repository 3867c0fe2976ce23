"""The example project of the README and the Compose file, run like a user does."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.support.servers import PartMissing, Postgres, RedisServer, ServerProcess, need, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "deploy" / "example"


def _have(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            message = f"the example project needs {module}"
            raise PartMissing(message)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    need(lambda: _have("django", "django_celery_beat", "ephem"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "HA_BEAT_"))}
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "DJANGO_SETTINGS_MODULE": "example.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'example.sqlite3'}",
    }


def run(env: dict[str, str], *arguments: str) -> str:
    """Run Python in the example's folder; return its output. Fails on an exit status other than 0."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=EXAMPLE, env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_system_checks_pass(env):
    env["SCHEDULE"] = "database"
    assert "no issues" in run(env, "manage.py", "check", "--fail-level", "WARNING")


def test_celery_reads_all_kinds_of_schedule(env):
    report = run(env, "-m", "celery", "-A", "example", "report")
    assert "polls.tasks.task_clear_session" in report
    assert "<crontab: */15" in report
    assert "<solar: sunset" in report


def test_schedule_names_only_existing_tasks(env):
    code = (
        "from example import celery_app as app\n"
        "app.loader.import_default_modules()\n"
        "print({entry['task'] for entry in app.conf.beat_schedule.values()} - set(app.tasks))"
    )
    assert run(env, "-c", code).strip() == "set()"


def test_task_deletes_expired_sessions(env):
    run(env, "manage.py", "migrate", "--verbosity", "0")
    code = (
        "import datetime, django; django.setup()\n"
        "from django.contrib.sessions.models import Session\n"
        "from django.utils import timezone\n"
        "from polls.tasks import task_clear_session\n"
        "day = datetime.timedelta(days=1)\n"
        "Session.objects.create(session_key='old', session_data='', expire_date=timezone.now() - day)\n"
        "Session.objects.create(session_key='new', session_data='', expire_date=timezone.now() + day)\n"
        "task_clear_session()\n"
        "print(list(Session.objects.values_list('session_key', flat=True)))"
    )
    assert run(env, "-c", code).strip() == "['new']"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////data/a.sqlite3", {"ENGINE": "django.db.backends.sqlite3", "NAME": "/data/a.sqlite3"}),
        (
            "postgresql://u:p%40ss@h:5432/n",
            {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "n",
                "USER": "u",
                "PASSWORD": "p@ss",
                "HOST": "h",
                "PORT": 5432,
            },
        ),
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
def test_two_beats_enqueue_each_instant_once(env, tmp_path, redis_server: RedisServer, kind, options, header, name):
    """In the database schedule, the leader first writes the entries of the settings to it."""
    env |= {"REDIS_URL": redis_server.url, "SCHEDULE": kind}
    run(env, "manage.py", "migrate", "--verbosity", "0")
    beat = [sys.executable, "-m", "celery", "-A", "example", "beat", *options]
    client = redis.Redis.from_url(redis_server.url)
    beats = [ServerProcess(beat, tmp_path / f"beat-{n}.log", cwd=EXAMPLE, env=env) for n in range(2)]
    try:
        wait_for(lambda: client.llen("celery") >= 2, timeout=60, what="two messages")
        assert all(process.alive for process in beats), [process.log_tail() for process in beats]
        headers = [json.loads(message)["headers"] for message in client.lrange("celery", 0, -1)]
        # Another entry is due as well at a full quarter of an hour.
        assert name in {each[header] for each in headers}
        instants = [(each[header], each["ha_beat"]["scheduled_at"]) for each in headers]
        assert len(set(instants)) == len(instants)
    finally:
        for process in beats:
            process.stop()
        client.close()


def test_transactions_of_worker_beats_and_admin_take_turns(env):
    """A transaction on their SQLite file that reads before it writes must not find it locked."""
    import django

    if django.VERSION < (5, 1):
        pytest.skip("needs Django 5.1")
    run(env, "manage.py", "migrate", "--verbosity", "0")
    code = (
        "import django, sqlite3; django.setup()\n"
        "from django.db import connection, transaction\n"
        "from django.contrib.sessions.models import Session\n"
        "other = sqlite3.connect(connection.settings_dict['NAME'], timeout=0.1)\n"
        "with transaction.atomic():\n"
        "    Session.objects.count()\n"
        "    try:\n"
        "        other.execute('BEGIN IMMEDIATE')\n"
        "    except sqlite3.OperationalError as exc:\n"
        "        print(exc)"
    )
    assert run(env, "-c", code).strip() == "database is locked"


@pytest.mark.parametrize("kind", ["static", "database"])
def test_checks_pass_with_either_schedule(env, kind):
    env["SCHEDULE"] = kind
    run(env, "manage.py", "migrate", "--verbosity", "0")
    assert "Traceback" not in run(env, "manage.py", "check", "--database", "default", "--fail-level", "WARNING")


def test_command_of_the_readme_creates_the_admins_user(env):
    line = next(line for line in (EXAMPLE / "README.md").read_text().splitlines() if "createsuperuser" in line)
    setting, _, command = line.partition(" ")
    name, _, password = setting.partition("=")
    run(env, "manage.py", "migrate", "--verbosity", "0")
    run(env | {name: password}, *command.split()[1:])
    code = (
        "import django; django.setup()\n"
        "from django.contrib.auth import authenticate\n"
        f"print(authenticate(username='admin', password={password!r}).is_superuser)"
    )
    assert run(env, "-c", code).strip() == "True"


def test_example_runs_on_postgresql(env, tmp_path, redis_server: RedisServer):
    need(lambda: _have("psycopg"))
    with need(Postgres) as server:
        found = server.django_database
        address = f"{found['USER']}:{found.get('PASSWORD', '')}@{found['HOST']}:{found['PORT']}/{found['NAME']}"
        env |= {"REDIS_URL": redis_server.url, "SCHEDULE": "database", "DATABASE_URL": f"postgresql://{address}"}
        run(env, "manage.py", "migrate", "--verbosity", "0")
        client = redis.Redis.from_url(redis_server.url)
        beat = [sys.executable, "-m", "celery", "-A", "example", "beat", "--pidfile="]
        process = ServerProcess(beat, tmp_path / "beat.log", cwd=EXAMPLE, env=env)
        try:
            wait_for(lambda: client.llen("celery") >= 1, timeout=60, what="a message")
        finally:
            process.stop()
            client.close()
