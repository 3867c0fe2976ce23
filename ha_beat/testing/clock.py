"""A clock that stands still until it is told to go on."""

from __future__ import annotations

from datetime import UTC, datetime


class SettableClock:
    """A :class:`ha_beat.clock.Clock` for tests: :meth:`sleep` returns at once, and that much time has passed.

    ``rate`` is how fast its :meth:`elapsed` runs against the time that :meth:`advance` is given: 1.02 gains 2 %.
    """

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC), *, rate: float = 1.0) -> None:
        if now.tzinfo is None:
            raise ValueError(f"the instant {now} needs a time zone")
        self.rate = rate
        self._wall = now.timestamp()
        self._elapsed = 1000.0

    def wall(self) -> float:
        """The wall clock's time, in seconds since the Unix epoch."""
        return self._wall

    def elapsed(self) -> float:
        """Seconds on a clock that is never set, from an arbitrary start."""
        return self._elapsed

    def sleep(self, seconds: float) -> None:
        """Return at once, after so many seconds."""
        self.advance(max(seconds, 0.0))

    def now(self) -> datetime:
        """The wall clock's time, in UTC."""
        return datetime.fromtimestamp(self._wall, UTC)

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks.

        Raises:
            ValueError: time would run backwards; for that there is :meth:`step_wall`.
        """
        if seconds < 0:
            raise ValueError(f"time does not run backwards ({seconds} s)")
        self._wall += seconds
        self._elapsed += seconds * self.rate

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock on or back, as an administrator or NTP does: :meth:`elapsed` does not notice."""
        self._wall += seconds
