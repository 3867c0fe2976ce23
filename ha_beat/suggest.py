"""Suggestions for a misspelled name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

#: Similarity, from 0 to 1, from which a name is worth suggesting.
_CUTOFF = 0.4


def nearest(name: str, known: Iterable[str], limit: int = 3, *, cutoff: float = _CUTOFF) -> list[str]:
    """Return up to ``limit`` known names that are similar to ``name``, the most similar first."""
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=cutoff)


def did_you_mean(names: Sequence[str]) -> str:
    """Return ``; did you mean a or b?``, or an empty string without names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
