"""Time budgets for work on the main loop.

Work whose amount has no limit ends when its budget is spent, hands over what it has, and continues in the next turn.
It reports progress after each item, so that a leader with many or slow items does not count as hung. One item that
takes longer than ``stall_timeout`` still does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ha_beat.clock import Clock

#: Longest budget in seconds. Entries that fall due meanwhile are late by this and the last item.
LONGEST_BUDGET = 0.5


def budget_for(stall_timeout: float) -> float:
    """Return the seconds that one piece of work may take."""
    return min(LONGEST_BUDGET, stall_timeout / 10)


class Budget:
    """Deadline of one piece of work."""

    def __init__(self, clock: Clock, seconds: float, progress: Callable[[], None]) -> None:
        self._clock = clock
        self._ends_at = clock.elapsed() + seconds
        self._progress = progress

    @property
    def spent(self) -> bool:
        """True if the work must end. Check it after each item, so that at least one is done."""
        return self._clock.elapsed() >= self._ends_at

    @property
    def left(self) -> float:
        """Return the seconds that are left; negative if more were used."""
        return self._ends_at - self._clock.elapsed()

    def item_done(self) -> None:
        """Report progress of the main loop."""
        self._progress()


@dataclass(frozen=True, slots=True)
class Pace:
    """Maker of budgets of ``seconds``. ``progress`` tells the election thread that the main loop is not hung."""

    clock: Clock
    seconds: float = float("inf")
    progress: Callable[[], None] = lambda: None

    def begin(self) -> Budget:
        """Return the budget of work that begins now."""
        return Budget(self.clock, self.seconds, self.progress)
