"""Tick app with an entry whose argument is computed in beat's main loop and hangs while the file named by HANG_FILE
names this process.
"""

import os
import time
from pathlib import Path

from celery.beat import BeatLazyFunc
from celery.schedules import schedule

from tests.support.apps.tick_app import app

__all__ = ["app"]


def maybe_hang() -> int:
    """Hang while the file names this process. Unlike a pause, other threads run on."""
    path = Path(os.environ["HANG_FILE"])
    while path.exists() and path.read_text() == str(os.getpid()):
        time.sleep(0.05)
    return 0


app.conf.beat_schedule = {
    **app.conf.beat_schedule,
    "hanging": {"task": "tick", "schedule": schedule(run_every=0.5), "args": (BeatLazyFunc(maybe_hang),)},
}
