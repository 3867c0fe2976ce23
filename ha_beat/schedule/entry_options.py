"""What an entry's ``options`` may say to ha_beat under the key ``ha_beat``; none of it reaches the message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ha_beat.errors import ConfigurationError
from ha_beat.reasons import UncertainPolicy
from ha_beat.schedule.occurrence import COUNT_CAP, Misfire

KEY = "ha_beat"

_POLICIES = ("once", "skip", "all")
_UNCERTAIN = tuple(UncertainPolicy)


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """An entry's own rules, with the cluster's where it has none."""

    misfire: Misfire
    uncertain: UncertainPolicy = UncertainPolicy.SKIP

    @classmethod
    def of(
        cls,
        entry: str,
        options: Mapping[str, Any],
        default: Misfire,
        starting_deadline: float | None,
        uncertain: str = "skip",
    ) -> EntryOptions:
        """Read them.

        Raises:
            ConfigurationError: names the entry, the key and what is right.
        """
        given = options.get(KEY) or {}
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"entry {entry!r}: options[{KEY!r}] is {given!r}; it must be a dict")
        own = dict(given)
        rules = default
        if "misfire" in own:
            rules = replace(rules, policy=_one_of(entry, "misfire", own.pop("misfire"), _POLICIES))
        if "misfire_grace" in own:
            rules = replace(rules, grace=_number(entry, "misfire_grace", own.pop("misfire_grace")))
        if "misfire_limit" in own:
            limit = _number(entry, "misfire_limit", own.pop("misfire_limit"), least=1, most=COUNT_CAP)
            rules = replace(rules, limit=int(limit))
        if "uncertain" in own:
            uncertain = _one_of(entry, "uncertain", own.pop("uncertain"), _UNCERTAIN)
        if own:
            raise ConfigurationError(
                f"entry {entry!r}: options[{KEY!r}] has no key {min(own)!r}; known are misfire, misfire_grace, "
                f"misfire_limit and uncertain"
            )
        if starting_deadline is not None:
            grace = starting_deadline if rules.grace is None else min(rules.grace, starting_deadline)
            rules = replace(rules, grace=grace)
        return cls(rules, UncertainPolicy(uncertain))

    @staticmethod
    def without_own(options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options that go into the message."""
        return {name: value for name, value in options.items() if name != KEY} if KEY in options else options


def _one_of(entry: str, key: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ConfigurationError(f"entry {entry!r}: {key} is {value!r}; it can be {', '.join(known)}")
    return value


def _number(entry: str, key: str, value: Any, least: float = 0, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        right = f"a number of at least {least}" if most == math.inf else f"a number from {least} to {most}"
        raise ConfigurationError(f"entry {entry!r}: {key} is {value!r}; it must be {right}")
    return value
