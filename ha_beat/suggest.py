"""Suggestions for a misspelled name."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Sequence

#: Similarity, from 0 to 1, from which a name is worth suggesting.
_CUTOFF = 0.4

#: Most names that are compared closely, which takes about 50 us each, and most characters of the misspelled name.
_COMPARED, _LONGEST = 100, 200


def nearest(name: str, known: Iterable[str], limit: int = 3, *, cutoff: float = _CUTOFF) -> list[str]:
    """Return up to ``limit`` known names that are similar to ``name``, the most similar first."""
    name = name[:_LONGEST]
    pairs = {name[place : place + 2] for place in range(len(name) - 1)}
    # Only the names that share the most pairs of letters: comparing thousands of names would take a second.
    likely = heapq.nlargest(_COMPARED, known, key=lambda other: sum(pair in other for pair in pairs))
    return difflib.get_close_matches(name, likely, n=limit, cutoff=cutoff)


def did_you_mean(names: Sequence[str]) -> str:
    """Return ``; did you mean a or b?``, or an empty string without names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
