"""Tick app with a task that takes long."""

import time

from tests.support.apps.tick_app import app

__all__ = ["app"]


@app.task(name="nap")
def nap(seconds: float) -> None:
    """Print and sleep."""
    print("napping", flush=True)
    time.sleep(seconds)
