"""Documented first steps of redbeat and sqlalchemy-celery-beat, with the package's own flag `-S` and with ours."""

import base64
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.faults.cluster import base_environment
from tests.support.servers import RedisServer, ServerProcess, wait_for

PROJECT = """
from datetime import timedelta

from celery import Celery
from celery.schedules import crontab
from celery.utils.log import get_task_logger

logger = get_task_logger(__name__)
app = Celery("tasks", broker="BROKER")
app.conf.update(
    timezone="UTC",
    beat_schedule={
        "static": {"task": "tasks.echo", "schedule": timedelta(seconds=1), "args": ("static",)},
        "hourly": {"task": "tasks.echo", "schedule": crontab(minute=0), "args": ("hourly",)},
    },
    redbeat_redis_url="REDBEAT",
    beat_dburi="sqlite:///schedule.db",
    beat_max_loop_interval=1,
)

@app.task
def echo(text):
    logger.warning("ran %s", text)
"""


class Project:
    """Module `tasks` in a folder, and the processes that a user starts there."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.folder = folder
        self.stack = ExitStack()
        self.redbeat = server.url.removesuffix("/0") + "/1"
        body = PROJECT.replace("BROKER", server.url).replace("REDBEAT", self.redbeat)
        (folder / "tasks.py").write_text(body)
        env = base_environment()
        self.environment = {**env, "PYTHONPATH": f"{folder}:{env['PYTHONPATH']}"}

    def start(self, *command: str) -> ServerProcess:
        log = self.folder / f"{command[0]}.log"
        words = [sys.executable, "-m", "celery", "-A", "tasks", *command, "-l", "info"]
        process = ServerProcess(words, log, cwd=self.folder, env=self.environment)
        self.stack.callback(process.stop, 15)
        return process

    def run(self, program: str) -> None:
        """Run a program of the user beside the beat."""
        log = self.folder / "program.log"
        process = ServerProcess([sys.executable, "-c", program], log, cwd=self.folder, env=self.environment)
        assert process.wait(60) == 0, process.log_text()

    def runs(self, text: str) -> int:
        return (self.folder / "worker.log").read_text().count(f"ran {text}\n")

    def wait_for_runs(self, text: str) -> None:
        before = self.runs(text)
        wait_for(lambda: self.runs(text) >= before + 2, 60, f"runs of {text}")

    def wait_for_silence(self, text: str) -> None:
        """Wait until the task has not run for three seconds."""
        seen = -1
        deadline = time.monotonic() + 60
        while seen != (seen := self.runs(text)):
            assert time.monotonic() < deadline, f"{text} still runs"
            time.sleep(3)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for log in tmp_path.glob("*.log"):
        print(log.name, log.read_text()[-3000:], sep="\n")


SAVE_REDBEAT = """
import tasks
from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry

RedBeatSchedulerEntry("saved", "tasks.echo", schedule(run_every=1), args=["saved"], app=tasks.app).save()
"""

DELETE_REDBEAT = """
import tasks
from redbeat import RedBeatSchedulerEntry

RedBeatSchedulerEntry.from_key("redbeat:saved", app=tasks.app).delete()
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["beat", "worker --beat"])
@pytest.mark.parametrize("flag", ["redbeat.RedBeatScheduler", "ha_beat.redbeat"])
def test_first_steps_with_redbeat_need_only_another_flag(
    flag: str, way: str, redis_server: RedisServer, folder: Path
) -> None:
    """Entries of the settings, of a program and of plain Redis commands run; a deleted one does not."""
    pytest.importorskip("redbeat")
    project = Project(folder, redis_server)
    with project.stack:
        if way == "beat":
            project.start("worker", "--pool", "solo")
            project.start("beat", "-S", flag)
        else:
            project.start("worker", "--beat", "--scheduler", flag)
        project.wait_for_runs("static")
        project.run(SAVE_REDBEAT)
        project.wait_for_runs("saved")
        each_second = {"__type__": "interval", "every": 1, "relative": False}
        definition = {"name": "written", "task": "tasks.echo", "schedule": each_second, "args": ["written"]}
        client = redis.Redis.from_url(project.redbeat)
        client.hset("redbeat:written", "definition", json.dumps(definition))
        client.zadd("redbeat::schedule", {"redbeat:written": 0})
        project.wait_for_runs("written")
        project.run(DELETE_REDBEAT)
        project.wait_for_silence("saved")
        project.wait_for_runs("written")


ADD_ROW = """
import json
import tasks
from sqlalchemy_celery_beat.models import IntervalSchedule, Period, PeriodicTask
from sqlalchemy_celery_beat.session import SessionManager

session = SessionManager().session_factory(tasks.app.conf.beat_dburi)
schedule = session.query(IntervalSchedule).filter_by(every=1, period=Period.SECONDS).first()
if not schedule:
    schedule = IntervalSchedule(every=1, period=Period.SECONDS)
    session.add(schedule)
    session.commit()
for name in ("saved", "bulk"):
    session.add(PeriodicTask(schedule_model=schedule, name=name, task="tasks.echo", args=json.dumps([name])))
session.commit()
"""

DISABLE_ROWS = """
import tasks
from sqlalchemy import update
from sqlalchemy_celery_beat.models import PeriodicTask, PeriodicTaskChanged
from sqlalchemy_celery_beat.session import SessionManager

session = SessionManager().session_factory(tasks.app.conf.beat_dburi)
saved = session.query(PeriodicTask).filter_by(name="saved").first()
saved.enabled = False
session.add(saved)
session.commit()
session.execute(update(PeriodicTask).where(PeriodicTask.name == "bulk").values(enabled=False))
session.commit()
PeriodicTaskChanged.update_from_session(session)
"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["sqlalchemy_celery_beat.schedulers:DatabaseScheduler", "ha_beat.sqlalchemy"])
def test_first_steps_with_sqlalchemy_celery_beat_need_only_another_flag(
    flag: str, redis_server: RedisServer, folder: Path
) -> None:
    """Entries of the settings and rows of a program run; rows that are disabled, one by one or in bulk, do not."""
    pytest.importorskip("sqlalchemy_celery_beat")
    project = Project(folder, redis_server)
    with project.stack:
        project.start("worker", "--pool", "solo")
        project.start("beat", "-S", flag)
        project.wait_for_runs("static")
        project.run(ADD_ROW)
        project.wait_for_runs("saved")
        project.wait_for_runs("bulk")
        project.run(DISABLE_ROWS)
        project.wait_for_silence("saved")
        project.wait_for_silence("bulk")
        project.wait_for_runs("static")


def run_count(store: str, project: Project) -> int:
    """Return the number of runs of the entry `saved` that the store has recorded."""
    if store == "redbeat":
        meta = redis.Redis.from_url(project.redbeat).hget("redbeat:saved", "meta")
        return int(json.loads(meta)["total_run_count"])
    with sqlite3.connect(project.folder / "schedule.db") as connection:
        (count,) = connection.execute("SELECT total_run_count FROM celery_periodictask WHERE name = 'saved'").fetchone()
        return int(count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "own", "save"),
    [
        ("redbeat", "redbeat.RedBeatScheduler", SAVE_REDBEAT),
        ("sqlalchemy", "sqlalchemy_celery_beat.schedulers:DatabaseScheduler", ADD_ROW),
    ],
)
def test_change_of_the_flag_and_back_keeps_last_runs_and_counts(
    store: str, own: str, save: str, redis_server: RedisServer, folder: Path
) -> None:
    """The package's own beat, ours, and its own again, each stopped with SIGTERM. Ours counts each of its messages."""
    pytest.importorskip({"redbeat": "redbeat", "sqlalchemy": "sqlalchemy_celery_beat"}[store])
    project = Project(folder, redis_server)

    def sent() -> int:
        messages = redis_server.admin.lrange("celery", 0, -1)
        return sum('"saved"' in base64.b64decode(json.loads(message)["body"]).decode() for message in messages)

    with project.stack:
        for number, flag in enumerate([own, f"ha_beat.{store}", own]):
            before = sent()
            counted = run_count(store, project) if number else 0
            beat = project.start("beat", "-S", flag, "--pidfile=")
            if number == 0:
                wait_for(lambda: redis_server.admin.llen("celery"), 60, "a message of the settings")
                project.run(save)
            wait_for(lambda before=before: sent() >= before + 3, 60, "messages")
            beat.stop(15)
            if flag.startswith("ha_beat"):
                assert abs(run_count(store, project) - counted - (sent() - before)) <= 1
