"""Clocks of the machine."""

import time

from ha_beat.clock import SystemClock


def test_platform_without_boottime_uses_the_monotonic_clock(monkeypatch):
    """On macOS the monotonic clock counts suspended time."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    clock = SystemClock()
    before, elapsed, after = time.monotonic(), clock.elapsed(), time.monotonic()
    assert before <= elapsed <= after
