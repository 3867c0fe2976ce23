"""Result of one check."""

from __future__ import annotations

from dataclasses import dataclass

from ha_beat.reasons import Level


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    level: Level
    subject: str
    text: str
