"""Definition of every setting: kind, default and description."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

from ha_beat.errors import ConfigurationError
from ha_beat.settings.kinds import Kind, address, choice, flag, mapping, optional, redis_url, seconds, text, whole
from ha_beat.settings.redaction import redact, shown
from ha_beat.settings.relations import contradictions
from ha_beat.settings.sources import APP_PREFIX, from_app, from_environment, replica_name
from ha_beat.suggest import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Derived(Generic[T]):
    """Default that is computed from the other settings. `text` describes it."""

    text: str
    compute: Callable[[Mapping[str, Any]], T]


@dataclass(frozen=True)
class Setting:
    """Definition of one setting."""

    name: str
    kind: Kind[Any]
    default: object
    help: str


class SettingInUse(NamedTuple):
    """Setting with its value in this process. Secrets are hidden."""

    name: str
    value: object
    source: str
    is_default: bool


_NOT_GIVEN: Any = object()


def _quarter(values: Mapping[str, Any]) -> float:
    ttl: float = values["lease_ttl"]
    return ttl / 4


def _setting(kind: Kind[T], *, default: T | Derived[T], help: str) -> T:  # noqa: A002  # the word in the documentation
    given = dataclasses.field(default=_NOT_GIVEN, metadata={"kind": kind, "default": default, "help": help})
    return cast("T", given)


_NAME_RULE = text(r"[A-Za-z0-9_.:-]{1,100}", "1 to 100 of the characters A-Z a-z 0-9 _ - . :")


@dataclass(frozen=True, repr=False, kw_only=True)
class Settings:
    """Validated settings of one replica. Durations are in seconds.

    Create them with `load`, or directly: `Settings(cluster="shop", lease_ttl=5)` uses the defaults of the others. Both
    raise ConfigurationError, which lists every fault. The class has more than 15 fields: one per setting.
    """

    redis_url: str | None = _setting(
        optional(redis_url()),
        default=Derived("the broker's, where that is Redis", lambda _: None),
        help="The Redis that holds the lease and the ledger. Enqueueing and recording are atomic only if this is "
        "the broker's own Redis and database.",
    )
    redis_options: Mapping[str, Any] = _setting(
        mapping(),
        default=Derived("{}", lambda _: {}),
        help="Options for redis-py's connections to it, such as `username`, `password` or `ssl_ca_certs`. "
        "They win over the URL.",
    )
    cluster: str = _setting(
        _NAME_RULE,
        default=Derived("the app's name", lambda _: ""),
        help="The name of the replicas that share one schedule. Every Redis key starts with it. Two apps that "
        "share a Redis need two names.",
    )
    replica: str = _setting(
        text(r"[^\s\x00-\x1f\x7f]{1,200}", "1 to 200 characters without spaces"),
        default=Derived("`POD_NAME` or the host's name, and the pid", lambda _: replica_name(os.environ)),
        help="The name of this replica in logs, metrics and the status. It does not have to be unique.",
    )
    lease_ttl: float = _setting(
        seconds(1, 3600),
        default=10.0,
        help="How long a leader keeps the lease without renewing it. Shorter: faster takeover when a machine or "
        "network fails. Longer: fewer changes of leader when Redis is slow.",
    )
    renew_interval: float = _setting(
        seconds(0.05),
        default=Derived("`lease_ttl` / 4", _quarter),
        help="How often the leader renews the lease; at most half of `lease_ttl`, so that one lost reply is harmless.",
    )
    poll_interval: float = _setting(
        seconds(0.05),
        default=0.1,
        help="How often a standby polls the lease; at most `lease_ttl`. A dead process is noticed within two "
        "polls. Each poll is one small command.",
    )
    stall_timeout: float = _setting(
        seconds(2, why="an idle main loop makes progress only once a second"),
        default=15.0,
        help="How long beat's main loop may hang before the leader releases the lease; more than "
        "`poll_interval`. Choose more than the slowest query of your schedule's store takes, and more than "
        "`command_timeout`.",
    )
    command_timeout: float = _setting(
        seconds(0.05),
        default=Derived("`lease_ttl` / 4, at most 2.5", lambda values: min(2.5, _quarter(values))),
        help="How long a command to Redis may take before its outcome counts as unknown; less than half of "
        "`lease_ttl`, and short enough for a second renewal after one without an answer.",
    )
    batch_size: int = _setting(
        whole(1, 500),
        default=100,
        help="The most occurrences that one script enqueues. Larger: faster bursts, but Redis is blocked for "
        "longer (8 to 16 ms for 500). A batch is also full at 2 MB of messages.",
    )
    misfire: str = _setting(
        choice("once", "skip", "all"),
        default="once",
        help="How overdue occurrences run: `once` runs the latest (like Celery), `skip` none, `all` each.",
    )
    misfire_grace: float | None = _setting(
        optional(seconds(0.1, why="each occurrence is enqueued a few milliseconds late")),
        default=None,
        help="How late an occurrence may be enqueued. Later ones are recorded as skipped. None: no limit.",
    )
    misfire_limit: int = _setting(
        whole(1, 1000),
        default=100,
        help="With `misfire` = `all`: the most occurrences of an entry that are caught up. Older ones are skipped.",
    )
    uncertain: str = _setting(
        choice("skip", "republish"),
        default="skip",
        help="With a broker other than the lease's Redis, if the delivery of a message is unknown: `skip` never "
        "sends the message twice, `republish` never loses it and needs the guard in the workers.",
    )
    publish_deadline: float | None = _setting(
        optional(seconds(0, above=True)),
        default=60.0,
        help="How long a failed publish is retried before the occurrence is recorded as skipped. None: no limit.",
    )
    on_state_loss: str = _setting(
        choice("skip", "catch_up"),
        default="skip",
        help="If Redis loses its data: `skip` occurrences that may have run (no duplicates), or `catch_up` (none "
        "lost, duplicates possible).",
    )
    wait_replicas: int = _setting(
        whole(0),
        default=0,
        help="Each renewal waits until this many Redis replicas have it. Safer when Redis fails over, but there "
        "is no leader without them.",
    )
    journal_size: int = _setting(
        whole(100),
        default=10_000,
        help="The most records of verdicts and changes of leader that the journal keeps in Redis.",
    )
    journal_age: float | None = _setting(
        optional(seconds(0, above=True)),
        default=7 * 86_400.0,
        help="How long the journal keeps a record. None: until `journal_size` is reached.",
    )
    http_bind: str | None = _setting(
        optional(address()),
        default=None,
        help="The address that serves health, metrics and status over HTTP, such as `127.0.0.1:8080` or "
        "`[::]:8080`. Of a range of ports, such as `127.0.0.1:8080-8089`, each replica takes the first free one. None: "
        "no HTTP.",
    )
    page_url: str | None = _setting(
        optional(text(r"https?://\S{1,500}", "a URL starting with http:// or https://")),
        default=None,
        help="The URL under which a browser reaches this replica's page, for links to it. `{replica}` and `{port}` "
        "stand for its name and port. None: addresses are shown as text.",
    )
    metrics_per_entry: bool = _setting(
        flag(),
        default=False,
        help="Whether metrics have a label with the entry's name. Each entry then adds time series.",
    )

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    """Key or variable that set each setting, by the setting's name. A setting that is missing here has its default."""

    def __post_init__(self) -> None:
        values, faults = _check(
            {name: value for name in _BY_NAME if (value := getattr(self, name)) is not _NOT_GIVEN}, self.sources
        )
        if faults:
            raise ConfigurationError("\n".join(faults))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def load(cls, conf_values: Mapping[str, object], environ: Mapping[str, str], default_cluster: str) -> Settings:
        """Return the settings from the app's keys (see `ha_beat_keys`) and the environment, which wins.

        An empty environment variable counts as not set.

        Raises:
            ConfigurationError: with one line per fault: the setting as the user spelled it, its value, the valid
                values, and for an unknown name the nearest known one.
        """
        faults: list[str] = []
        given: dict[str, object] = {}
        sources: dict[str, str] = {}
        for spelled, name, value in [*from_app(conf_values), *from_environment(environ)]:
            if name in _BY_NAME:
                given[name], sources[name] = value, spelled
            else:
                faults.append(f"{spelled}: unknown setting; the nearest known name is {_nearest(spelled, name)}")
        given.setdefault("replica", replica_name(environ))
        if "cluster" not in given and default_cluster:
            try:
                given["cluster"] = _NAME_RULE.read(default_cluster)
            except ValueError:
                faults.append(
                    f"ha_beat_cluster: not set, and the app's name {shown('cluster', default_cluster)} "
                    f"cannot stand in for it: must be {_NAME_RULE.right}"
                )
                given["cluster"] = "unnamed"  # so that _check does not report it again
        values, wrong = _check(given, sources)
        if faults or wrong:
            raise ConfigurationError("\n".join(faults + wrong))
        return cls(**values, sources=sources)

    @property
    def http_address(self) -> tuple[str, range] | None:
        """Return `http_bind` as host (without brackets) and ports."""
        if self.http_bind is None:
            return None
        host, _, ports = self.http_bind.rpartition(":")
        first, _, last = ports.partition("-")
        return host.strip("[]"), range(int(first), int(last or first) + 1)

    def describe(self) -> list[SettingInUse]:
        """Return each setting with its value and source. Secrets are hidden."""
        sources = self.sources
        return [
            SettingInUse(name, redact(getattr(self, name)), sources.get(name, "default"), name not in sources)
            for name in _BY_NAME
        ]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{used.name}={used.value!r}' for used in self.describe())})"


SETTINGS: tuple[Setting, ...] = tuple(
    Setting(field.name, **field.metadata) for field in dataclasses.fields(Settings) if field.metadata
)
_BY_NAME: dict[str, Setting] = {setting.name: setting for setting in SETTINGS}


def _check(given: Mapping[str, object], sources: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return all values, parsed and completed with defaults, and the faults, one line each."""

    def spelled(name: str) -> str:
        return sources.get(name, APP_PREFIX + name)

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
            faults.append(f"{spelled(name)}={shown(name, given[name])}: must be {setting.kind.right}")
            wrong.add(name)
    if "cluster" not in given:
        faults.append(f"{APP_PREFIX}cluster: not set, and the app has no name: must be {_NAME_RULE.right}")
    for setting in SETTINGS:
        if setting.name not in values:
            default = setting.default
            values[setting.name] = default.compute(values) if isinstance(default, Derived) else default
    return values, [*faults, *contradictions(values, given, wrong, spelled)]


def _nearest(spelled: str, name: str) -> str:
    """Return the known name nearest to `name`, spelled like the user's."""
    (best,) = nearest(name, _BY_NAME, 1, cutoff=0.0)
    prefix = spelled[: len(spelled) - len(name)]
    return prefix + (best.upper() if prefix.isupper() else best)
