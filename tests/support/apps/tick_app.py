"""Small Celery app for tests, configured by its environment.

BROKER_URL      URL of the broker
BEAT_SPEC       JSON: name -> {"every": seconds} or {"cron": "*" | "m h dom mon dow"}; with "n": 1000 it
                stands for as many entries, `name-0000` on. Optional: "task" (default `tick`), "args",
                "kwargs", "options", "relative"; with "every", "first": Unix time of the first occurrence
APP_CONFIG      JSON: further Celery settings, such as `ha_beat_*`
APP_NAME        the app's name, default `tick`
GUARD           set: the guard is on for all tasks
"""

import json
import os
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.schedules import crontab, schedule

from ha_beat.guard import guard
from tests.support import log_format  # noqa: F401 -- shows actions in the log

DEFAULT_SPEC = {"fast": {"every": 0.2}}


def crontab_of(text: str) -> crontab:
    """Return a crontab from its five fields. Missing fields are `*`, so `*` alone is every minute."""
    minute, hour, day, month, weekday = (text.split() + ["*"] * 5)[:5]
    return crontab(minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday)


def beat_schedule(spec: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return Celery's `beat_schedule` for a spec as described above."""
    entries: dict[str, dict[str, Any]] = {}
    for name, line in spec.items():
        when = (
            crontab_of(line["cron"])
            if "cron" in line
            else schedule(run_every=line["every"], relative=line.get("relative", False))
        )
        count = line.get("n")
        for entry in [name] if count is None else [f"{name}-{number:04d}" for number in range(count)]:
            entries[entry] = {
                "task": line.get("task", "tick"),
                "schedule": when,
                "args": tuple(line.get("args", ())),
                "kwargs": dict(line.get("kwargs", {})),
                "options": dict(line.get("options", {})),
            }
            if "first" in line:
                entries[entry]["last_run_at"] = datetime.fromtimestamp(line["first"] - line["every"], UTC)
    return entries


app = Celery(os.environ.get("APP_NAME", "tick"), broker=os.environ.get("BROKER_URL", "memory://"))
app.conf.task_ignore_result = True
app.conf.update(timezone="UTC")
app.conf.beat_schedule = beat_schedule(json.loads(os.environ.get("BEAT_SPEC") or json.dumps(DEFAULT_SPEC)))
app.conf.update(json.loads(os.environ.get("APP_CONFIG") or "{}"))


if os.environ.get("GUARD"):
    guard(app)


@app.task(name="tick")
def tick(*args: object, **kwargs: object) -> None:
    """Do nothing."""


@app.task(name="fail")
def fail() -> None:
    """Raise an exception."""
    raise RuntimeError("this task fails by design")
