"""Clocks and conversion of time. Nothing else in this package reads a clock, so tests can set the time.

Durations are measured on ``CLOCK_BOOTTIME`` if the platform has it. It also counts the time while the machine is
suspended, and a step of the wall clock does not move it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(instant: datetime) -> int:
    """Return microseconds since the Unix epoch, without the rounding of floats."""
    return (instant - _EPOCH) // _MICROSECOND


def to_ms(instant: datetime) -> int:
    """Return milliseconds since the Unix epoch, rounded."""
    return round(instant.timestamp() * 1000)


def from_micros(micros: int) -> datetime:
    """Return the instant, in UTC, from microseconds since the Unix epoch."""
    return _EPOCH + timedelta(microseconds=micros)


class Clock(Protocol):
    """Source of time."""

    def wall(self) -> float:
        """Return this machine's time in seconds since the Unix epoch."""
        ...

    def elapsed(self) -> float:
        """Return seconds on a clock that never steps. Only differences have a meaning."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""
        ...


class SystemClock:
    """Clocks of the machine."""

    def __init__(self) -> None:
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        # macOS has no such clock, and Windows no clock_gettime.
        self._elapsed = time.monotonic if boottime is None else partial(time.clock_gettime, boottime)

    def wall(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return self._elapsed()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
