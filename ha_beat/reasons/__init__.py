"""Codes for reasons, kinds and outcomes.

Events, metrics, the journal, the lease record and the tests use these values. Where one is
shown in words, the words are in :mod:`ha_beat.monitoring.wording` or, for answers to requests, in
:mod:`ha_beat.monitoring.request_wording`. A value never changes its meaning; new values may be added.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from ha_beat.reasons.cluster import *
from ha_beat.reasons.election import *
from ha_beat.reasons.occurrences import *

_E = TypeVar("_E", bound=StrEnum)


def parse_code(kind: type[_E], value: str) -> _E | None:
    """Return the member with this value, or ``None`` for an unknown one, such as a newer version's."""
    try:
        return kind(value)
    except ValueError:
        return None
