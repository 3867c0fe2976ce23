"""Checks of values that were read from Redis.

A stored value may be damaged or written by another program. It is accepted only within limits in which every part can
compute with it and show it. The functions raise ``ValueError`` or ``TypeError`` for other values.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ha_beat.clock import from_micros, to_micros
from ha_beat.exception_text import printable

#: Exceptions that a malformed record can cause.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)

#: Largest number that JSON, Lua and JavaScript hold exactly.
MOST = 2**53

#: Times from 1900 to 9000, in ms since the Unix epoch: with any offset and interval they stay within Python's range.
EARLIEST_MS = to_micros(datetime(1900, 1, 1, tzinfo=UTC)) // 1000
LATEST_MS = to_micros(datetime(9000, 1, 1, tzinfo=UTC)) // 1000


def number_in(value: Any, least: int = 0, most: int = MOST) -> int:
    """Return a whole number between the limits."""
    number = int(value)
    if not least <= number <= most:
        raise ValueError(f"{number} is not between {least} and {most}")
    return number


def ms_in(value: Any) -> int:
    """Return a time in ms since the Unix epoch."""
    return number_in(value, 0, LATEST_MS)


def instant_in(micros: Any) -> datetime:
    """Return the instant, in UTC, from microseconds since the Unix epoch."""
    return from_micros(number_in(micros, EARLIEST_MS * 1000, LATEST_MS * 1000))


def iso_instant_in(value: Any) -> datetime:
    """Return the instant, in UTC, from its ISO form, which must have an offset."""
    instant = datetime.fromisoformat(value)
    if instant.tzinfo is None:
        raise ValueError(f"{value!r} has no offset")
    return instant_in(to_micros(instant))


def text_in(value: Any) -> str:
    """Return a text that can be encoded, ``""`` for ``None``. A lone surrogate is replaced by its escape."""
    return "" if value is None else printable(value)
