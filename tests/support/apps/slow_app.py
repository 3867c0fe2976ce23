"""Tick app with entries whose argument ``slow`` is the number of seconds that it takes to compute."""

import time

from celery.beat import BeatLazyFunc

from tests.support.apps.tick_app import app  # found by celery -A


def _computed(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


for _entry in app.conf.beat_schedule.values():
    if "slow" in _entry["kwargs"]:
        _entry["kwargs"] = {"slow": BeatLazyFunc(_computed, _entry["kwargs"]["slow"])}
