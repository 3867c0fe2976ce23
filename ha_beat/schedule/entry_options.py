"""Options of one entry for ha_beat, kept in its ``options`` under the key ``ha_beat`` and not sent with the message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ha_beat.errors import ConfigurationError
from ha_beat.reasons import MisfirePolicy, UncertainPolicy
from ha_beat.schedule.misfire import CATCH_UP_CAP, LEAST_GRACE, MisfireRules

KEY = "ha_beat"


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """Rules of an entry, completed by the cluster's."""

    misfire: MisfireRules
    uncertain: UncertainPolicy = UncertainPolicy.SKIP

    @classmethod
    def of(
        cls,
        entry: str,
        options: Mapping[str, Any],
        default: MisfireRules,
        starting_deadline: float | None,
        uncertain: str = "skip",
    ) -> EntryOptions:
        """Parse an entry's options.

        Raises:
            ConfigurationError: names the entry, the key and the values allowed.
        """
        given = options.get(KEY) or {}
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"entry {entry!r}: options[{KEY!r}] is {given!r}; it must be a dict")
        own = dict(given)
        rules = default
        if "misfire" in own:
            policy = _one_of(entry, "misfire", own.pop("misfire"), tuple(MisfirePolicy))
            rules = replace(rules, policy=MisfirePolicy(policy))
        if "misfire_grace" in own:
            rules = replace(rules, grace=_number(entry, "misfire_grace", own.pop("misfire_grace"), least=LEAST_GRACE))
        if "misfire_limit" in own:
            limit = _number(entry, "misfire_limit", own.pop("misfire_limit"), least=1, most=CATCH_UP_CAP)
            rules = replace(rules, limit=int(limit))
        if "uncertain" in own:
            uncertain = _one_of(entry, "uncertain", own.pop("uncertain"), tuple(UncertainPolicy))
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
        """Return the options that go into the message."""
        return {name: value for name, value in options.items() if name != KEY} if KEY in options else options


def _one_of(entry: str, key: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ConfigurationError(f"entry {entry!r}: {key} is {value!r}; it can be {', '.join(known)}")
    return value


def _number(entry: str, key: str, value: Any, least: float = 0, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        allowed = f"a number of at least {least}" if most == math.inf else f"a number from {least} to {most}"
        raise ConfigurationError(f"entry {entry!r}: {key} is {value!r}; it must be {allowed}")
    return value
