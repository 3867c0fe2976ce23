"""Options of one entry for ha_beat, kept in its ``options`` under the key ``ha_beat`` and not sent with the message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ha_beat.errors import ConfigurationError
from ha_beat.reasons import MisfirePolicy, OverlapPolicy, UncertainPolicy
from ha_beat.schedule.misfire import CATCH_UP_CAP, LEAST_GRACE, MisfireRules

KEY = "ha_beat"

#: Default of ``overlap_timeout``: seconds after which a message whose end no worker has reported counts as lost.
OVERLAP_TIMEOUT = 3600.0

#: Longest ``overlap_timeout`` in seconds: 30 days.
_LONGEST_TIMEOUT = 2_592_000.0

#: Longest ``jitter`` in seconds: a day.
_LONGEST_JITTER = 86_400.0

_KNOWN = ("jitter", "misfire", "misfire_grace", "misfire_limit", "overlap", "overlap_timeout", "uncertain")


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """Rules of an entry. The cluster's apply where the entry has none."""

    misfire: MisfireRules
    uncertain: UncertainPolicy = UncertainPolicy.SKIP
    #: Seconds for which a message that has not ended keeps the entry from its next occurrence; 0 for not at all.
    busy_for: float = 0.0
    #: Seconds over which the occurrences are spread.
    jitter: float = 0.0

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
        busy_for = _busy_for(entry, own)
        jitter = float(_number(entry, "jitter", own.pop("jitter", 0.0), most=_LONGEST_JITTER))
        if own:
            raise ConfigurationError(
                f"entry {entry!r}: options[{KEY!r}] has no key {min(own)!r}; known are {', '.join(_KNOWN)}"
            )
        if starting_deadline is not None:
            grace = starting_deadline if rules.grace is None else min(rules.grace, starting_deadline)
            rules = replace(rules, grace=grace)
        return cls(_lenient(rules, jitter), UncertainPolicy(uncertain), busy_for, jitter)

    def as_fields(self) -> dict[str, Any]:
        """Return the rules by the names of their fields."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @staticmethod
    def without_own(options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options that go into the message."""
        return {name: value for name, value in options.items() if name != KEY} if KEY in options else options


def _lenient(rules: MisfireRules, jitter: float) -> MisfireRules:
    """Return the rules for an entry whose occurrences are late by up to ``jitter`` on purpose."""
    grace = None if rules.grace is None else rules.grace + jitter
    return replace(rules, grace=grace, usual_lateness=rules.usual_lateness + jitter)


def _busy_for(entry: str, own: dict[str, Any]) -> float:
    """Take ``overlap`` and ``overlap_timeout`` out of the options."""
    timeout = own.pop("overlap_timeout", OVERLAP_TIMEOUT)
    timeout = _number(entry, "overlap_timeout", timeout, least=1, most=_LONGEST_TIMEOUT)
    overlap = _one_of(entry, "overlap", own.pop("overlap", OverlapPolicy.ALLOW), tuple(OverlapPolicy))
    return float(timeout) if overlap == OverlapPolicy.SKIP else 0.0


def _one_of(entry: str, key: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ConfigurationError(f"entry {entry!r}: {key} is {value!r}; it can be {', '.join(known)}")
    return value


def _number(entry: str, key: str, value: Any, least: float = 0, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        allowed = f"a number of at least {least}" if most == math.inf else f"a number from {least} to {most}"
        raise ConfigurationError(f"entry {entry!r}: {key} is {value!r}; it must be {allowed}")
    return value
