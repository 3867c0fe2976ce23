"""Time budgets for work on the main loop.

Work of unlimited size stops when its budget is spent, and continues in the next turn. It reports progress after each
item, so that a leader with many items does not count as hung. A leader counts as hung if one item takes longer than
``stall_timeout``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ha_beat.clock import Clock

#: Longest budget in seconds. Entries that fall due during the work are late by this and the last item.
LONGEST_BUDGET = 0.5


def budget_for(stall_timeout: float) -> float:
    """Return the budget of one piece of work in seconds."""
    return min(LONGEST_BUDGET, stall_timeout / 10)


class Budget:
    """Deadline of one piece of work."""

    def __init__(self, clock: Clock, seconds: float, progress: Callable[[], None]) -> None:
        self._clock = clock
        self._ends_at = clock.elapsed() + seconds
        #: Call it after each item. It reports progress of the main loop.
        self.item_done = progress

    @property
    def spent(self) -> bool:
        """True if the work must stop. Check it after each item, so that at least one item is done."""
        return self._clock.elapsed() >= self._ends_at

    @property
    def left(self) -> float:
        """Return the remaining seconds; negative if the work took longer."""
        return self._ends_at - self._clock.elapsed()


@dataclass(frozen=True, slots=True)
class Pace:
    """Source of budgets of ``seconds``. ``progress`` shows the election thread that the main loop is not hung."""

    clock: Clock
    seconds: float = float("inf")
    progress: Callable[[], None] = lambda: None

    def begin(self) -> Budget:
        """Return a budget that begins now."""
        return Budget(self.clock, self.seconds, self.progress)
