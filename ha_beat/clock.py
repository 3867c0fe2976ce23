"""Time, in one place, so that tests can set it.

Durations are measured on ``CLOCK_BOOTTIME`` where there is one: it counts the time for which the machine was
suspended, and no step of the wall clock moves it. Nothing else in this package reads a clock.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """What the package asks of a clock."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, as this machine believes."""
        ...

    def elapsed(self) -> float:
        """Seconds on a clock that never steps; only differences mean something."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        # macOS lacks that clock, Windows clock_gettime altogether.
        self._elapsed = time.monotonic if boottime is None else partial(time.clock_gettime, boottime)

    def wall(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return self._elapsed()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
