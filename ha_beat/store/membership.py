"""Membership: which replicas there are. Each says every two seconds that it is here; that is all a standby writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ha_beat.errors import StoreError
from ha_beat.reasons import RedisRisk
from ha_beat.store.keys import Keys
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Script, pairs, text, whole

if TYPE_CHECKING:
    import redis

#: Seconds between two signs of life.
MEMBER_INTERVAL = 2.0

#: Seconds after which a replica that gave no sign counts as gone.
MEMBER_TIMEOUT = 3 * MEMBER_INTERVAL

#: Seconds after which the leader removes the record of a replica that is gone.
_REMOVE_AFTER = 60.0


@dataclass(frozen=True, slots=True)
class Upcoming:
    """An entry that will be due. ``at_ms`` is in ms since the Unix epoch."""

    entry: str
    task: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """What a replica says of itself.

    ``seen_ms`` is the Redis server's time at its last sign of life, ``since_ms`` its own at its start, ``http`` the URL
    of its endpoint (empty without), ``schedule`` a digest of its schedule (empty where it is not read),
    ``clock_offset_ms`` how far its clock is ahead of the Redis server's. ``not_ready`` has a detail for each
    :class:`~ha_beat.reasons.HealthReason` why it could not lead. The fields from ``entries`` on are the leader's.
    """

    id: str
    role: str = "standby"
    host: str = ""
    pid: int = 0
    version: str = ""
    since_ms: int = 0
    seen_ms: int = 0
    http: str = ""
    epoch: int = 0
    fingerprint: str = ""
    schedule: str = ""
    clock_offset_ms: int = 0
    not_ready: Mapping[str, str] = field(default_factory=dict)
    entries: int = 0
    backlog: int = 0
    overdue_ms: int = 0
    upcoming: tuple[Upcoming, ...] = ()
    failing: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> str:
        record = asdict(self)
        del record["id"], record["seen_ms"]
        record["upcoming"] = [[line.entry, line.task, line.at_ms] for line in self.upcoming]
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def parse(cls, replica_id: str, raw: str) -> Member | None:
        """From the record in Redis; ``None`` where it can't be read. Unknown fields (newer software) are left out."""
        try:
            record = {**json.loads(raw), "id": replica_id}
            known: dict[str, Any] = {
                each.name: _of_kind(_PLAIN.get(str(each.type)), record[each.name])
                for each in fields(cls)
                if each.name in record
            }
            known["upcoming"] = tuple(
                Upcoming(_of_kind(str, entry), _of_kind(str, task), _of_kind(int, at_ms))
                for entry, task, at_ms in known.get("upcoming", ())
            )
            for name in ("not_ready", "failing"):
                known[name] = {key: _of_kind(str, detail) for key, detail in known.get(name, {}).items()}
            return cls(**known)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None

    def alive(self, server_ms: int) -> bool:
        return server_ms - self.seen_ms <= MEMBER_TIMEOUT * 1000


_PLAIN: Mapping[str, type] = {"str": str, "int": int}


def _of_kind(kind: type | None, value: Any) -> Any:
    if kind is not None and not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _as_of(leader: LeaseRecord | None, member: Member) -> Member:
    """Return the member with the role ``leader`` only if the lease agrees: a dead leader's record still claims it."""
    leads = leader is not None and leader.holder == member.id
    return replace(member, role="standby") if member.role == "leader" and not leads else member


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the Redis server is set up; empty or ``None`` where it doesn't say."""

    eviction_policy: str = ""
    append_only_file: bool | None = None

    def risks(self) -> list[RedisRisk]:
        """Return how a server with this configuration may lose the lease and the ledger."""
        found = []
        if self.eviction_policy.startswith("allkeys"):
            found.append(RedisRisk.EVICTION)
        if self.append_only_file is False:
            found.append(RedisRisk.NO_APPEND_ONLY_FILE)
        return found


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as one look at Redis found it. ``members`` are those alive, by id; times are the Redis server's.

    ``paused`` is empty, or what the ledger says of the pause (JSON). ``dropped`` messages were the workers' guard's.
    """

    server_ms: int
    lease: LeaseRecord | None
    members: tuple[Member, ...]
    gen: str
    highest_epoch: int
    journal_counter: int
    journal_length: int
    paused: str
    dropped: int = 0

    @property
    def leader(self) -> LeaseRecord | None:
        """The lease if its holder leads, else ``None``."""
        return _leader(self.lease, self.server_ms)


def _leader(lease: LeaseRecord | None, server_ms: int) -> LeaseRecord | None:
    return lease if lease is not None and lease.leads(server_ms) else None


class Members:
    """The register of one cluster."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._script = Script("members", although_full=True)

    def view(self, member: Member | None = None, *, clean: bool = False) -> ClusterView:
        """Look at the cluster, and where ``member`` is given say that it is here.

        Raises:
            StoreError: Redis did not answer, or refused.
        """
        oldest = str(round(_REMOVE_AFTER * 1000)) if clean else ""
        reply = self._call(member, "1", oldest)
        server_ms, lease, members, meta, length, dropped = reply
        gen, epoch, counter, paused = ("" if value is None else text(value) for value in meta)
        now = int(server_ms)
        record = LeaseRecord.parse(pairs(lease)) if lease else None
        leader = _leader(record, now)
        parsed = (Member.parse(name, raw) for name, raw in sorted(pairs(members).items()))
        return ClusterView(
            server_ms=now,
            lease=record,
            members=tuple(_as_of(leader, each) for each in parsed if each is not None and each.alive(now)),
            gen=gen,
            highest_epoch=whole(epoch),
            journal_counter=whole(counter),
            journal_length=int(length),
            paused=paused,
            dropped=whole(dropped),
        )

    def server_settings(self) -> ServerSettings | None:
        """How the server is set up; ``None`` where it may not be asked. Never raises."""
        try:
            with mapped_redis_errors():
                client = self._client()
                memory: Any = client.info("memory")
                persistence: Any = client.info("persistence")
            aof = persistence.get("aof_enabled")
            policy = text(memory.get("maxmemory_policy", "")) if memory.get("maxmemory") else ""
            return ServerSettings(policy, None if aof is None else bool(aof))
        except (StoreError, AttributeError):
            return None

    def announce(self, member: Member) -> int:
        """Say that the replica is here. Returns the server's time in ms. Raises as :meth:`view`."""
        return int(self._call(member, "0", "")[0])

    def remove(self, replica_id: str) -> None:
        """Take the replica out; without Redis, its record runs out by itself. Never raises."""
        with suppress(StoreError), mapped_redis_errors():
            self._client().hdel(self._keys.members, replica_id)

    def _call(self, member: Member | None, look: str, oldest: str) -> Sequence[Any]:
        keys = [self._keys.members, self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.dropped]
        args = [member.id if member else "", member.encoded() if member else "", look, oldest]
        reply: Sequence[Any] = self._script(self._client(), keys, args)
        return reply
