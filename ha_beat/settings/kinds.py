"""Kinds of setting values: how each is parsed, and the description of valid values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from ha_beat.settings.redaction import NEXT_URL

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """Parser for one kind of value, given as the text of a variable or as a Python value.

    `right` describes the valid values: it completes the sentence "must be …". `read` raises ValueError for others.
    """

    right: str
    read: Callable[[object], T]


def _wrong() -> ValueError:
    return ValueError("not a valid value")


def seconds(lowest: float, highest: float | None = None, *, above: bool = False, why: str = "") -> Kind[float]:
    """Return a parser for a number of seconds or a timedelta, from (or above) `lowest` to `highest`.

    `why` explains the limits.
    """
    if highest is not None:
        right = f"a number of seconds from {lowest:g} to {highest:g}"
    else:
        right = f"a number of seconds {'above' if above else 'from'} {lowest:g}{'' if above else ' up'}"
    right += f", because {why}" if why else ""

    def read(value: object) -> float:
        if isinstance(value, timedelta):
            number = value.total_seconds()
        elif isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _wrong()
        else:
            number = float(value)
        too_low = number <= lowest if above else number < lowest
        if not math.isfinite(number) or too_low or (highest is not None and number > highest):
            raise _wrong()
        return number

    return Kind(right, read)


def whole(lowest: int, highest: int | None = None) -> Kind[int]:
    """Return a parser for whole numbers from `lowest` to `highest`."""
    right = f"a whole number from {lowest}" + (" up" if highest is None else f" to {highest}")

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise _wrong()
        number = int(value)
        if number < lowest or (highest is not None and number > highest):
            raise _wrong()
        return number

    return Kind(right, read)


def choice(*values: str) -> Kind[str]:
    """Return a parser for one of these words."""

    def read(value: object) -> str:
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in values:
            raise _wrong()
        return word

    return Kind("one of " + ", ".join(values), read)


def flag() -> Kind[bool]:
    """Return a parser for true or false, in the usual spellings."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = value.strip().lower() if isinstance(value, str) else ""
        if word not in words:
            raise _wrong()
        return words[word]

    return Kind("true or false", read)


def text(pattern: str, right: str) -> Kind[str]:
    """Return a parser for texts that fully match `pattern`."""
    compiled = re.compile(pattern)

    def read(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise _wrong()
        return value

    return Kind(right, read)


def redis_url() -> Kind[str]:
    """Return a parser for a Redis URL, Sentinel URLs joined by ';', or a Redis Cluster URL with hosts joined by ','."""
    schemes = {"redis", "rediss", "unix", "redis+socket", "sentinel", "redis+cluster", "rediss+cluster"}

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise _wrong()
        url = value.strip()
        for part in NEXT_URL.split(url):
            scheme, separator, rest = part.partition("://")
            if not separator or scheme.strip().lower() not in schemes or not rest.strip("; "):
                raise _wrong()
            if ";" not in rest and "," not in rest:
                _ = urlsplit(part).port  # raises ValueError for an invalid port
        return url

    return Kind(
        "a URL starting with redis://, rediss://, unix://, redis+socket://, sentinel://, redis+cluster:// or "
        "rediss+cluster://",
        read,
    )


def mapping() -> Kind[Mapping[str, Any]]:
    """Return a parser for a dict with text keys; as text, a JSON object."""

    def read(value: object) -> Mapping[str, Any]:
        if isinstance(value, str):
            value = json.loads(value)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong()
        return dict(value)

    return Kind("a dict of redis-py's options (in the environment a JSON object)", read)


def address() -> Kind[str]:
    """Return a parser for `host:port` or `host:first-last`, with IPv6 in brackets."""
    host = r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_.-]+)"
    compiled = re.compile(rf"{host}:([0-9]{{1,5}})(?:-([0-9]{{1,5}}))?", re.ASCII)

    def read(value: object) -> str:
        found = compiled.fullmatch(value.strip()) if isinstance(value, str) else None
        if not found or int(found[1]) > 65535:
            raise _wrong()
        if found[2] and not 0 < int(found[1]) <= int(found[2]) <= 65535:
            raise _wrong()
        return found[0]

    return Kind("host:port, such as 127.0.0.1:8080 or [::]:8080, or host:first-last for a range of ports", read)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """Return a parser for the same kind or None (as text: none)."""

    def read(value: object) -> T | None:
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        return kind.read(value)

    return Kind(f"{kind.right}, or none", read)
