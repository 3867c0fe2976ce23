"""Tick app with an argument that is computed for each message and can hang.

SLEEPS   path of a file; while it holds this replica's name (HA_BEAT_REPLICA) the argument's value is not returned
"""

import os
import time
from pathlib import Path

from celery.beat import BeatLazyFunc

from tests.support.apps.tick_app import app  # found by celery -A

_SWITCH = Path(os.environ["SLEEPS"])


def _asleep() -> bool:
    return _SWITCH.exists() and _SWITCH.read_text() == os.environ["HA_BEAT_REPLICA"]


def _sleepy() -> str:
    if _asleep():
        print("asleep", flush=True)
        while _asleep():
            time.sleep(0.05)
        print("awake", flush=True)
    return "done"


for _entry in app.conf.beat_schedule.values():
    _entry["kwargs"] = {
        name: BeatLazyFunc(_sleepy) if value == "lazy" else value for name, value in _entry["kwargs"].items()
    }
