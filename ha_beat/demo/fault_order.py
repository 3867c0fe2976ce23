"""Order of the faults."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ha_beat.demo.tally import FaultKind


def fault_order(seed: int | None) -> Iterator[tuple[FaultKind, float]]:
    """Yield faults without end: the kind, and a factor from 0.7 to 1.3 for the pause before it.

    The first three are one of each kind, so that a short demo has all. Then come shuffled rounds with two kills.
    """
    chooser = random.Random(seed)
    upcoming = [FaultKind.KILL, FaultKind.PAUSE, FaultKind.STOP]
    while True:
        for kind in upcoming:
            yield kind, chooser.uniform(0.7, 1.3)
        upcoming = [FaultKind.KILL, FaultKind.KILL, FaultKind.PAUSE, FaultKind.STOP]
        chooser.shuffle(upcoming)
