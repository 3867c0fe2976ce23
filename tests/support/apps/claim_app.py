"""Tick app for tests of other brokers than Redis: a replica stops at a named place, and tasks record their runs.

FAILPOINT_FILE  path of a file with the name of a place. The replica that reaches the place first writes the time to the
                same path with the suffix `.done`, removes the file and kills itself. With `NAME:NUMBER` it does not
                kill itself: its main loop waits at that arrival until the test removes the `.done` file
RECORD_URL      Redis in which tasks and the worker record events, in the lists `received`, `ran` and `dropped`
RECORD_FIRST    seconds that the first run of the task `linger` takes
"""

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import redis
from celery import Task
from celery.signals import task_received

from ha_beat import failpoints
from ha_beat.guard import GuardedTask, message_dropped
from tests.support.apps.tick_app import app

PLACES = ("before claim", "claimed", "before publish", "published", "confirmed")
arrivals = Counter[str]()


def _end_at(place: str, path: Path) -> None:
    with contextlib.suppress(OSError):
        wanted, _, number = path.read_text().partition(":")
        if wanted != place:
            return
        arrivals[place] += 1
        if number and arrivals[place] < int(number):
            return
        done = path.with_suffix(".done")
        done.write_text(repr(time.time()))
        path.unlink()
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)
        while done.exists():
            time.sleep(0.01)


if "FAILPOINT_FILE" in os.environ:
    for name in PLACES:
        hook: Callable[[], None] = partial(_end_at, name, Path(os.environ["FAILPOINT_FILE"]))
        failpoints.set_hook(name, hook)


@cache
def records(_pid: int) -> Any:
    return redis.Redis.from_url(os.environ["RECORD_URL"])


def note(kind: str, task_id: str, **more: Any) -> None:
    records(os.getpid()).rpush(kind, json.dumps({"id": task_id, **more}))


@task_received.connect(weak=False)
def _received(request: Any = None, **_: Any) -> None:
    note("received", request.id)


@message_dropped.connect(weak=False)
def _dropped(sender: Any = None, task_id: str = "", **_: Any) -> None:
    note("dropped", task_id, task=sender.name)


def _ran(task: Task) -> None:
    note("ran", task.request.id, task=task.name, retries=task.request.retries)


@app.task(name="plain", bind=True)
def plain(self: Task) -> None:
    _ran(self)


@app.task(name="guarded", bind=True, base=GuardedTask, acks_late=True)
def guarded(self: Task) -> None:
    _ran(self)


@app.task(name="again", bind=True, base=GuardedTask)
def again(self: Task) -> None:
    """Fail once and be retried."""
    _ran(self)
    if self.request.retries == 0:
        raise self.retry(countdown=0)


@app.task(name="linger", bind=True, base=GuardedTask, acks_late=True)
def linger(self: Task) -> None:
    """Run for a long time, until it is delivered again."""
    _ran(self)
    if not self.request.delivery_info["redelivered"]:
        time.sleep(float(os.environ.get("RECORD_FIRST", "60")))
