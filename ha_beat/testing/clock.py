"""Clock that a test sets."""

from __future__ import annotations

from datetime import UTC, datetime


class SettableClock:
    """Clock that only the test moves. :meth:`sleep` advances it and returns immediately.

    ``rate`` is the speed of :meth:`elapsed` relative to the wall clock: with 1.02 it gains 2 %.
    """

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC), *, rate: float = 1.0) -> None:
        if now.tzinfo is None:
            raise ValueError(f"the instant {now} needs a time zone")
        self.rate = rate
        self._wall = now.timestamp()
        self._elapsed = 1000.0

    def wall(self) -> float:
        """Return the wall clock's time in seconds since the Unix epoch."""
        return self._wall

    def elapsed(self) -> float:
        """Return seconds on a clock that never steps, from an arbitrary start."""
        return self._elapsed

    def sleep(self, seconds: float) -> None:
        """Advance the clock by ``seconds`` without waiting."""
        self.advance(max(seconds, 0.0))

    def now(self) -> datetime:
        """Return the wall clock's time in UTC."""
        return datetime.fromtimestamp(self._wall, UTC)

    def advance(self, seconds: float) -> None:
        """Advance both clocks.

        Raises:
            ValueError: ``seconds`` is negative; use :meth:`step_wall`.
        """
        if seconds < 0:
            raise ValueError(f"cannot advance by {seconds} s: use step_wall to go back")
        self._wall += seconds
        self._elapsed += seconds * self.rate

    def step_wall(self, seconds: float) -> None:
        """Move the wall clock forward or back, as NTP does. :meth:`elapsed` does not change."""
        self._wall += seconds
