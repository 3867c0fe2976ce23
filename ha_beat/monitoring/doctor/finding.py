"""Result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ha_beat.reasons import Level


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    level: Level
    subject: str
    text: str


ok = partial(Finding, Level.OK)
note = partial(Finding, Level.NOTE)
warn = partial(Finding, Level.WARN)
fail = partial(Finding, Level.FAIL)
