"""The settings: one definition, from which come parsing, validation, the types and the table of the README.

Two sources, the lowest first: keys of the Celery app (`ha_beat_lease_ttl`; with Django and
`namespace="CELERY"` that is `CELERY_HA_BEAT_LEASE_TTL`), and the environment (`HA_BEAT_LEASE_TTL`), which
wins.

`python -m ha_beat.settings` prints the table.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from ha_beat.errors import ConfigurationError

__all__ = (
    "Settings",
    "Setting",
    "SettingInUse",
    "SETTINGS",
    "ha_beat_keys",
    "redact_url",
    "settings_table",
)

T = TypeVar("T")

_APP_PREFIX = "ha_beat_"
_ENV_PREFIX = "HA_BEAT_"
_HIDDEN = "***"
_SECRET = re.compile(r"pass|pwd|secret|token|credential|username", re.IGNORECASE)
_SHOWN_CHARACTERS = 80


# --- Secrets --------------------------------------------------------------------------------------

_NEXT_URL = re.compile(r"(?<=[;,])\s*(?=[A-Za-z][\w+.-]*://)")
_SECRET_IN_QUERY = re.compile(r"((?:^|[&;])[^=&;]*(?:pass|pwd|secret|token|credential)[^=&;]*=)[^&;]*", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]*\]|[\w.-]*)(?::[0-9]*)?")


def redact_url(url: str) -> str:
    """The URL without its secrets, fit for logs.

    Covers passwords before the host, in the query string, and in each part of a list such as
    `sentinel://:pw@h1:26379;sentinel://:pw@h2:26379`. Where it is unclear what is a secret, more is hidden.
    """
    return "".join(_redact_one(part) for part in _NEXT_URL.split(url))


def _redact_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    front, question, query = rest.partition("?")
    if "@" in query:
        return f"{scheme}{separator}{_HIDDEN}"  # a raw '?' in the password, or an '@' in the query: can't tell
    userinfo, at, where = front.rpartition("@")
    host, slash, path = where.partition("/")
    if not all(_HOST.fullmatch(name.strip()) for name in re.split("[;,]", host)):
        host = _HIDDEN  # no '@', but something like ':password' in the place of host and port
    user, colon, _ = userinfo.partition(":")
    shown = f"{user}:{_HIDDEN}" if colon and re.fullmatch(r"[\w.-]*", user) else _HIDDEN
    query = _SECRET_IN_QUERY.sub(rf"\1{_HIDDEN}", query)
    return f"{scheme}{separator}{shown + at if at else ''}{host}{slash}{path}{question}{query}"


def _redact(value: object, name: str = "") -> object:
    """The same value, of plain types only and without secrets. `name` is the key that it stands under."""
    if value is None or isinstance(value, bool | int | float):
        return _HIDDEN if _SECRET.search(name) and value is not None else value
    if _SECRET.search(name):
        return _HIDDEN
    if isinstance(value, str):
        return redact_url(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {str(key): _redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item) for item in value]
    return f"<{type(value).__name__}>"  # the repr of an object may hold anything


def _shown(name: str, value: object) -> str:
    """A value as it stands in a message: one line, short, without secrets."""
    if name == "redis_url" and isinstance(value, str):
        value = redact_url(value)
    elif name == "redis_options" and not isinstance(value, Mapping):
        return "(not shown)"  # JSON that did not parse, or some list, may hold a password anywhere
    text = repr(_redact(value, name))
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


# --- Kinds of values ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind(Generic[T]):
    """How a value is read, from the text of a variable or from a Python value alike.

    `right` says what is right and completes the sentence "must be …"; `read` raises ValueError for the rest.
    """

    right: str
    read: Callable[[object], T]


def _wrong() -> ValueError:
    return ValueError("not what it must be")


def seconds(lowest: float, highest: float | None = None, *, above: bool = False) -> Kind[float]:
    """A number of seconds (or a timedelta) from `lowest`, or above it, to `highest`."""
    if highest is not None:
        right = f"a number of seconds from {lowest:g} to {highest:g}"
    else:
        right = f"a number of seconds {'above' if above else 'from'} {lowest:g}{'' if above else ' up'}"

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
    """A whole number from `lowest` to `highest`."""
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
    """One of a few words."""

    def read(value: object) -> str:
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in values:
            raise _wrong()
        return word

    return Kind("one of " + ", ".join(values), read)


def flag() -> Kind[bool]:
    """True or false, in the usual spellings."""
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }

    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.strip().lower() not in words:
            raise _wrong()
        return words[value.strip().lower()]

    return Kind("true or false", read)


def text(pattern: str, right: str) -> Kind[str]:
    """A text that matches `pattern` as a whole."""
    compiled = re.compile(pattern)

    def read(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise _wrong()
        return value

    return Kind(right, read)


def redis_url() -> Kind[str]:
    """A Redis URL, a list of Sentinel URLs joined by ';', or a Redis Cluster's with its hosts joined by ','."""
    schemes = {"redis", "rediss", "unix", "redis+socket", "sentinel", "redis+cluster", "rediss+cluster"}

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise _wrong()
        url = value.strip()
        for part in _NEXT_URL.split(url):
            scheme, separator, rest = part.partition("://")
            if not separator or scheme.strip().lower() not in schemes or not rest.strip("; "):
                raise _wrong()
            if ";" not in rest and "," not in rest:
                _ = urlsplit(part).port  # raises ValueError for a port that is none
        return url

    return Kind(
        "a URL starting with redis://, rediss://, unix://, redis+socket://, sentinel://, redis+cluster:// or "
        "rediss+cluster://",
        read,
    )


def mapping() -> Kind[Mapping[str, Any]]:
    """A dict with names as its keys; as text, a JSON object."""

    def read(value: object) -> Mapping[str, Any]:
        if isinstance(value, str):
            value = json.loads(value)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong()
        return dict(value)

    return Kind("a dict of redis-py's options (in the environment a JSON object)", read)


def address() -> Kind[str]:
    """`host:port`, IPv6 in brackets."""
    compiled = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", re.ASCII)

    def read(value: object) -> str:
        found = compiled.fullmatch(value.strip()) if isinstance(value, str) else None
        if not found or int(found[1]) > 65535:
            raise _wrong()
        return found[0]

    return Kind("host:port, such as 127.0.0.1:8080 or [::]:8080", read)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """The same, or None (as text: none)."""

    def read(value: object) -> T | None:
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        return kind.read(value)

    return Kind(f"{kind.right}, or none", read)


# --- The definition -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Derived(Generic[T]):
    """A default that follows from the other settings; `text` describes it."""

    text: str
    compute: Callable[[Mapping[str, Any]], T]


@dataclass(frozen=True)
class Setting:
    """One setting: everything there is to know of it."""

    name: str
    kind: Kind[Any]
    default: object
    help: str

    @property
    def default_text(self) -> str:
        """The default as the documentation shows it."""
        if isinstance(self.default, Derived):
            return self.default.text
        if self.default is None:
            return "none"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


class SettingInUse(NamedTuple):
    """A setting with its value in this process, fit to be shown: secrets are hidden."""

    name: str
    value: object
    source: str
    is_default: bool


_NOT_GIVEN: Any = object()


def _quarter(values: Mapping[str, Any]) -> float:
    ttl: float = values["lease_ttl"]
    return ttl / 4


def _setting(kind: Kind[T], *, default: T | Derived[T], help: str) -> T:  # noqa: A002  # the word that users know
    given = dataclasses.field(default=_NOT_GIVEN, metadata={"kind": kind, "default": default, "help": help})
    return cast("T", given)


_NOT_IN_A_NAME = re.compile(r"[\s\x00-\x1f\x7f]")
_NAME_RULE = text(r"[A-Za-z0-9_.:-]{1,100}", "1 to 100 of the characters A-Z a-z 0-9 _ - . :")


@dataclass(frozen=True, repr=False, kw_only=True)
class Settings:
    """The settings of one replica, checked. Durations are in seconds.

    Made by `load`; or directly, as in `Settings(cluster="shop", lease_ttl=5)`, where the rest have their
    defaults. Both raise ConfigurationError, which names every fault.
    """

    redis_url: str | None = _setting(
        optional(redis_url()),
        default=Derived("the broker's, where that is Redis", lambda _: None),
        help="The Redis that holds the lease and the ledger. Enqueueing and recording are one act only where "
        "this is the broker's own Redis and database.",
    )
    redis_options: Mapping[str, Any] = _setting(
        mapping(),
        default=Derived("{}", lambda _: {}),
        help="Options for redis-py's connections to it, such as `username`, `password` or `ssl_ca_certs`; "
        "they win over what the URL says.",
    )
    cluster: str = _setting(
        _NAME_RULE,
        default=Derived("the app's name", lambda _: ""),
        help="The name of the replicas that share one schedule; every Redis key starts with it. Two apps "
        "with one Redis need two names.",
    )
    replica: str = _setting(
        text(r"[^\s\x00-\x1f\x7f]{1,200}", "1 to 200 characters without spaces"),
        default=Derived("`POD_NAME` or the host's name, and the pid", lambda _: _replica_name(os.environ)),
        help="The name under which logs, metrics and the status show this replica. It need not be unique.",
    )
    lease_ttl: float = _setting(
        seconds(1, 3600),
        default=10.0,
        help="How long a leader that is not heard from keeps the lease. Shorter: quicker takeover from a "
        "lost machine or network. Longer: a slow Redis costs fewer changes of leader.",
    )
    renew_interval: float = _setting(
        seconds(0, above=True),
        default=Derived("`lease_ttl` / 4", _quarter),
        help="How often the leader renews the lease; at most half of `lease_ttl`, so that one lost reply does no harm.",
    )
    poll_interval: float = _setting(
        seconds(0.05),
        default=0.1,
        help="How often a standby looks at the lease; at most `lease_ttl`. A dead process is noticed within "
        "two looks; each is one small command.",
    )
    stall_timeout: float = _setting(
        seconds(1),
        default=15.0,
        help="How long beat's main loop may hang before the leader lets the lease go; more than "
        "`poll_interval`. Longer than the slowest query of your schedule's store.",
    )
    command_timeout: float = _setting(
        seconds(0, above=True),
        default=Derived("`lease_ttl` / 4, at most 2.5", lambda values: min(2.5, _quarter(values))),
        help="How long a command to Redis may take before its outcome counts as unknown; less than half of "
        "`lease_ttl`.",
    )
    batch_size: int = _setting(
        whole(1, 500),
        default=100,
        help="The most occurrences enqueued by one script. Larger: faster bursts, but Redis serves nobody "
        "else for longer (500 take 11 to 17 ms).",
    )
    misfire: str = _setting(
        choice("once", "skip", "all"),
        default="once",
        help="What becomes of occurrences found overdue: `once` runs the latest (as Celery does), `skip` "
        "none, `all` each.",
    )
    misfire_grace: float | None = _setting(
        optional(seconds(0)),
        default=None,
        help="How late an occurrence may still be enqueued; later ones are recorded as skipped. None: no limit.",
    )
    misfire_limit: int = _setting(
        whole(1, 1000),
        default=100,
        help="With `misfire` = `all`: the most occurrences of an entry that are caught up; the older are skipped.",
    )
    uncertain: str = _setting(
        choice("skip", "republish"),
        default="skip",
        help="On a broker other than the lease's Redis, what becomes of a message whose fate is unknown: "
        "`skip` never sends it twice, `republish` never loses it (and needs the guard in the workers).",
    )
    publish_deadline: float | None = _setting(
        optional(seconds(0, above=True)),
        default=60.0,
        help="How long the failed publish of an occurrence is tried again before it is recorded as skipped. "
        "None: for ever.",
    )
    on_state_loss: str = _setting(
        choice("skip", "catch_up"),
        default="skip",
        help="When Redis lost its data: `skip` what may have run already (never twice), or `catch_up` (never "
        "lost, perhaps twice).",
    )
    wait_replicas: int = _setting(
        whole(0),
        default=0,
        help="Each renewal waits until this many Redis replicas have it. Safer across a failover of Redis; "
        "without them nobody leads.",
    )
    journal_size: int = _setting(
        whole(100),
        default=10_000,
        help="How many records of verdicts and changes of leader the journal keeps in Redis.",
    )
    journal_age: float | None = _setting(
        optional(seconds(0, above=True)),
        default=7 * 86_400.0,
        help="How long the journal keeps a record. None: as long as `journal_size` allows.",
    )
    http_bind: str | None = _setting(
        optional(address()),
        default=None,
        help="Where to serve health, metrics and status over HTTP, for instance `127.0.0.1:8080` or "
        "`[::]:8080`. None: nowhere.",
    )
    metrics_per_entry: bool = _setting(
        flag(),
        default=False,
        help="Whether metrics carry the entry's name. Finer, but each entry adds its own time series.",
    )

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    """By name of the setting: the key or variable that set it. Those left out have their defaults."""

    def __post_init__(self) -> None:
        given = {
            setting.name: getattr(self, setting.name)
            for setting in SETTINGS
            if getattr(self, setting.name) is not _NOT_GIVEN
        }
        values, faults = _check(given, self.sources)
        if faults:
            raise ConfigurationError("\n".join(faults))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def load(cls, conf_values: Mapping[str, object], environ: Mapping[str, str], default_cluster: str) -> Settings:
        """The settings from the app's keys (see `ha_beat_keys`) and the environment, which wins.

        An environment variable that is empty counts as not set. Raises ConfigurationError with one line for
        each fault: the setting as the user spelled it, its value, what is right, and for an unknown name the
        nearest known one.
        """
        faults: list[str] = []
        given: dict[str, object] = {}
        sources: dict[str, str] = {}
        for spelled, name, value in [*_from_app(conf_values), *_from_environment(environ)]:
            if name in _BY_NAME:
                given[name], sources[name] = value, spelled
            else:
                faults.append(f"{spelled}: unknown setting; the nearest known name is {_nearest(spelled, name)}")
        given.setdefault("replica", _replica_name(environ))
        if "cluster" not in given and default_cluster:
            try:
                given["cluster"] = _NAME_RULE.read(default_cluster)
            except ValueError:
                faults.append(
                    f"ha_beat_cluster: not set, and the app's name {_shown('cluster', default_cluster)} "
                    f"cannot stand in for it: must be {_NAME_RULE.right}"
                )
                given["cluster"] = "unnamed"  # so that it is not reported twice
        values, wrong = _check(given, sources)
        if faults or wrong:
            raise ConfigurationError("\n".join(faults + wrong))
        return cls(**values, sources=sources)

    @property
    def http_address(self) -> tuple[str, int] | None:
        """`http_bind` as host (without brackets) and port."""
        if self.http_bind is None:
            return None
        host, _, port = self.http_bind.rpartition(":")
        return host.strip("[]"), int(port)

    def describe(self) -> list[SettingInUse]:
        """Each setting with its value and where it came from; secrets are hidden."""
        return [
            SettingInUse(
                setting.name,
                _redact(getattr(self, setting.name)),
                self.sources.get(setting.name, "default"),
                setting.name not in self.sources,
            )
            for setting in SETTINGS
        ]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{used.name}={used.value!r}' for used in self.describe())})"


SETTINGS: tuple[Setting, ...] = tuple(
    Setting(field.name, field.metadata["kind"], field.metadata["default"], field.metadata["help"])
    for field in dataclasses.fields(Settings)
    if "kind" in field.metadata
)
_BY_NAME: dict[str, Setting] = {setting.name: setting for setting in SETTINGS}


# --- Relations ------------------------------------------------------------------------------------


class _Relation(NamedTuple):
    name: str
    right: str
    other: str
    holds: Callable[[Any, Any], bool]


_RELATIONS = (
    _Relation("renew_interval", "at most half of", "lease_ttl", lambda renew, ttl: renew * 2 <= ttl),
    _Relation("poll_interval", "at most", "lease_ttl", lambda poll, ttl: poll <= ttl),
    _Relation("command_timeout", "less than half of", "lease_ttl", lambda timeout, ttl: timeout * 2 < ttl),
    _Relation("stall_timeout", "more than", "poll_interval", lambda stall, poll: stall > poll),
)


def _check(given: Mapping[str, object], sources: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """All values, read and completed with the defaults, and the faults, one line each."""

    def spelled(name: str) -> str:
        return sources.get(name, _APP_PREFIX + name)

    values: dict[str, Any] = {}
    faults: list[str] = []
    wrong: set[str] = set()
    for setting in SETTINGS:
        name = setting.name
        if name not in given:
            continue
        try:
            values[name] = setting.kind.read(given[name])
        except (ValueError, OverflowError, RecursionError):
            faults.append(f"{spelled(name)}={_shown(name, given[name])}: must be {setting.kind.right}")
            wrong.add(name)
    if "cluster" not in given:
        faults.append(f"{_APP_PREFIX}cluster: not set, and the app has no name: must be {_NAME_RULE.right}")
    for setting in SETTINGS:
        if setting.name not in values:
            default = setting.default
            values[setting.name] = default.compute(values) if isinstance(default, Derived) else default
    for relation in _RELATIONS:
        if relation.name in wrong or relation.other in wrong:
            continue
        value, other = values[relation.name], values[relation.other]
        if not relation.holds(value, other):
            origin = "" if relation.name in given else " (default)"
            faults.append(
                f"{spelled(relation.name)}={_shown(relation.name, value)}{origin}: "
                f"must be {relation.right} {spelled(relation.other)} ({_shown(relation.other, other)})"
            )
    return values, faults


# --- Sources --------------------------------------------------------------------------------------

_APP_KEY = re.compile(r"(?:[a-z][a-z0-9]*_)*?ha_beat_(\w+)", re.IGNORECASE)


def ha_beat_keys(conf: Mapping[str, object]) -> dict[str, object]:
    """The ha_beat settings among those of a Celery app (`app.conf`), by the names the user gave them.

    Finds `ha_beat_x` and `HA_BEAT_X`, and the same behind the app's namespace (`CELERY_HA_BEAT_X` in Django).
    Where a setting was given more than once, the one that Celery itself would prefer is left: changes made on
    `app.conf` over the configuration's module, names with the namespace over those without.
    """
    conf.get(_APP_PREFIX)  # Celery reads its configuration at the first look at a key, not when keys are listed
    prefix = str(getattr(conf, "prefix", None) or "CELERY_").lower()
    found: dict[str, tuple[str, object]] = {}
    for layer in getattr(conf, "maps", None) or [conf]:
        # Listing the keys reads no value: to read all values of a Django settings object warns and can fail.
        keys = [str(key) for key in layer if str(key).lower().removeprefix(prefix).startswith(_APP_PREFIX)]
        for key in sorted(keys, key=lambda key: not key.lower().startswith(prefix)):
            found.setdefault(key.lower().removeprefix(prefix), (key, layer[key]))
    return dict(found.values())


def _from_app(conf_values: Mapping[str, object]) -> Iterable[tuple[str, str, object]]:
    for key in conf_values:
        if match := _APP_KEY.fullmatch(str(key)):
            yield str(key), match[1].lower(), conf_values[key]


def _from_environment(environ: Mapping[str, str]) -> Iterable[tuple[str, str, object]]:
    services = {
        name.removesuffix("_SERVICE_HOST")
        for name in environ
        if name.startswith("HA_BEAT") and name.endswith("_SERVICE_HOST")
    }
    for variable, value in environ.items():
        if not variable.startswith(_ENV_PREFIX) or not value.strip():
            continue
        # Kubernetes tells pods of a service named ha-beat by HA_BEAT_SERVICE_HOST, HA_BEAT_PORT and so on.
        if any(variable.startswith((f"{service}_SERVICE_", f"{service}_PORT")) for service in services):
            continue
        yield variable, variable.removeprefix(_ENV_PREFIX).lower(), value


def _nearest(spelled: str, name: str) -> str:
    """The known name nearest to `name`, in the user's own way of spelling."""
    best = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)[0]
    prefix = spelled[: len(spelled) - len(name)]
    return prefix + (best.upper() if prefix.isupper() else best)


def _replica_name(environ: Mapping[str, str]) -> str:
    host = environ.get("POD_NAME") or environ.get("HOSTNAME") or socket.gethostname()
    return f"{_NOT_IN_A_NAME.sub('-', host)[:180]}:{os.getpid()}"


# --- Documentation --------------------------------------------------------------------------------


def settings_table() -> str:
    """All settings as a Markdown table, for the README."""
    lines = ["| setting `ha_beat_…` | default | what it does |", "|---|---|---|"]
    for setting in SETTINGS:
        default = setting.default_text
        shown = default if isinstance(setting.default, Derived) and default != "{}" else f"`{default}`"
        right = setting.kind.right.replace("|", "\\|")
        lines.append(f"| `{setting.name}` | {shown} | {setting.help} *({right[0].upper()}{right[1:]}.)* |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(settings_table() + "\n")
