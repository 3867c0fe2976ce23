"""Which fault comes next, and after how long."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ha_beat.demo.tally import FaultKind


def fault_script(seed: int | None) -> Iterator[tuple[FaultKind, float]]:
    """Yield faults without end: kind, and a factor 0.7 to 1.3 for the pause before it.

    The first three are one of each, so that a short show has all; then come shuffled rounds with two kills.
    """
    chooser = random.Random(seed)
    upcoming = [FaultKind.KILL, FaultKind.PAUSE, FaultKind.STOP]
    while True:
        for kind in upcoming:
            yield kind, chooser.uniform(0.7, 1.3)
        upcoming = [FaultKind.KILL, FaultKind.KILL, FaultKind.PAUSE, FaultKind.STOP]
        chooser.shuffle(upcoming)
