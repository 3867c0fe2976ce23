"""Tick app with arguments that beat's main loop computes for each message.

An argument `hangs` takes as long as the file HANG_FILE names this replica (HA_BEAT_REPLICA); other threads run on.
An argument `slow` takes its value in seconds.
"""

import os
import time
from pathlib import Path

from celery.beat import BeatLazyFunc

from tests.support.apps.tick_app import app  # found by celery -A


def _named() -> bool:
    path = Path(os.environ["HANG_FILE"])
    return path.exists() and path.read_text() == os.environ["HA_BEAT_REPLICA"]


def _hang(_: object) -> None:
    if _named():
        print("asleep", flush=True)
        while _named():
            time.sleep(0.05)
        print("awake", flush=True)


_COMPUTED = {"hangs": _hang, "slow": time.sleep}

for _entry in app.conf.beat_schedule.values():
    for _name in _entry["kwargs"].keys() & _COMPUTED:
        _entry["kwargs"][_name] = BeatLazyFunc(_COMPUTED[_name], _entry["kwargs"][_name])
