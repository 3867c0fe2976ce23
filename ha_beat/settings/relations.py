"""Relations between settings: values that are valid alone but do not work together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from ha_beat.settings.redaction import shown
from ha_beat.settings.sources import APP_PREFIX


class _Relation(NamedTuple):
    """Condition of a setting that depends on another one."""

    name: str
    right: str
    other: str
    holds: Callable[[Any, Any], bool]


def _longest_renewal(values: Mapping[str, Any]) -> float:
    """Return how long a renewal may wait for its answer so that a second one is in time."""
    ttl, renew = values["lease_ttl"], values["renew_interval"]
    # As in the election: trust ends a tenth of the ttl early, and a retry follows a pause.
    left: float = ttl * 0.9 - renew - min(renew / 5, 0.5)
    return left


_RELATIONS = (
    _Relation("renew_interval", "at most half of", "lease_ttl", lambda renew, ttl: renew * 2 <= ttl),
    _Relation("poll_interval", "at most", "lease_ttl", lambda poll, ttl: poll <= ttl),
    _Relation("command_timeout", "less than half of", "lease_ttl", lambda timeout, ttl: timeout * 2 < ttl),
    _Relation("stall_timeout", "more than", "poll_interval", lambda stall, poll: stall > poll),
)


def contradictions(
    values: Mapping[str, Any], given: Mapping[str, object], wrong: set[str], spelled: Callable[[str], str]
) -> Iterator[str]:
    """Yield a fault for each setting that does not work with another one, except for the `wrong` ones.

    `given` are the values that were set. `spelled` returns a setting's name as the user spelled it.
    """

    def value_of(name: str) -> str:
        return f"{spelled(name)}={shown(name, values[name])}{'' if name in given else ' (default)'}"

    def others(names: Iterable[str]) -> str:
        return " and ".join(f"{spelled(name)} ({shown(name, values[name])})" for name in names)

    wrong = set(wrong)
    for relation in _RELATIONS:
        if relation.name in wrong or relation.other in wrong:
            continue
        if not relation.holds(values[relation.name], values[relation.other]):
            wrong.add(relation.name)
            yield f"{value_of(relation.name)}: must be {relation.right} {others([relation.other])}"
    pair, most = ("lease_ttl", "renew_interval"), _longest_renewal(values)
    if wrong.isdisjoint({"command_timeout", *pair}) and values["command_timeout"] > most:
        why = "because a renewal without an answer must leave time for another one"
        yield f"{value_of('command_timeout')}: must be at most {most:g} with {others(pair)}, {why}"
    if "lease_ttl" not in wrong:
        for name, timeout in _client_timeouts(values):
            if not _shorter(timeout, values["lease_ttl"] / 2):
                right = f"a number of seconds less than half of {others(['lease_ttl'])}"
                yield f"{name}={timeout!r}: must be {right}, because it replaces {spelled('command_timeout')}"


def _client_timeouts(values: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the place and the value of each timeout of redis-py, in the options and in the query of the URL."""
    query = parse_qs((values["redis_url"] or "").partition("?")[2])
    for option in ("socket_timeout", "socket_connect_timeout"):
        if option in values["redis_options"]:
            yield f"{APP_PREFIX}redis_options[{option!r}]", values["redis_options"][option]
        elif option in query:
            yield f"{option} of {APP_PREFIX}redis_url", query[option][-1]


def _shorter(timeout: object, most: float) -> bool:
    """True if redis-py reads this as a timeout of less than `most` seconds."""
    try:
        return 0 < float(timeout) < most  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
