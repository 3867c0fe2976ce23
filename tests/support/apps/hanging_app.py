"""The app of `tick_app`, with an entry whose argument is made in beat's main loop, and takes for ever to make where
the file named by HANG_FILE exists and names this process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery.beat import BeatLazyFunc
from celery.schedules import schedule

from tests.support.apps.tick_app import app

__all__ = ["app"]


def maybe_hang() -> int:
    """Hang as long as the file says so. A pause of the whole process would be another fault."""
    path = Path(os.environ["HANG_FILE"])
    while path.exists() and path.read_text() == str(os.getpid()):
        time.sleep(0.05)
    return 0


app.conf.beat_schedule = {
    **app.conf.beat_schedule,
    "hanging": {"task": "tick", "schedule": schedule(run_every=0.5), "args": (BeatLazyFunc(maybe_hang),)},
}
