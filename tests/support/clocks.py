"""Clocks for tests, besides `ha_beat.testing.SettableClock`, which stands still."""

from ha_beat.clock import SystemClock


class AdvancedClock(SystemClock):
    """Clock of the machine, moved ahead by `ahead` seconds."""

    ahead = 0.0

    def elapsed(self) -> float:
        return super().elapsed() + self.ahead

    def wall(self) -> float:
        return super().wall() + self.ahead


class SteppedClock(AdvancedClock):
    """Clock whose elapsed time moves by `ahead` alone, so that a slow machine uses up no time budget."""

    def elapsed(self) -> float:
        return 1000.0 + self.ahead


class HeldClock(SteppedClock):
    """Clock that begins at the machine's time, and moves by `ahead` alone."""

    def __init__(self) -> None:
        super().__init__()
        self._began = SystemClock().wall()

    def wall(self) -> float:
        return self._began + self.ahead
