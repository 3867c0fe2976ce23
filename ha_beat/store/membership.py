"""Membership: the replicas of a cluster that are alive. Each replica writes its record every one to two seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ha_beat.errors import StoreError
from ha_beat.store.keys import Keys
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Script, pairs, text, whole
from ha_beat.store.server_facts import ServerSettings, read_server_settings
from ha_beat.store.stored_values import LATEST_MS, MALFORMED, ms_in, number_in, text_in

if TYPE_CHECKING:
    import redis

#: Seconds between two writes of a member record.
MEMBER_INTERVAL = 2.0

#: Seconds without a new record after which a replica counts as gone.
MEMBER_TIMEOUT = 3 * MEMBER_INTERVAL

#: Seconds after which the record of a replica that is gone is removed.
REMOVE_AFTER = 60.0

#: Number of records above which every write removes old ones. Otherwise only the leader's do.
MOST_RECORDS = 200


@dataclass(frozen=True, slots=True)
class Upcoming:
    """Entry with its next due instant. ``at_ms`` is in ms since the Unix epoch."""

    entry: str
    task: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """Record of one replica.

    ``seen_ms`` is the server's time of the last write, and ``since_ms`` the replica's time of its start. ``http`` is
    the URL of its endpoint for other machines, ``url`` the one for browsers, ``""`` for none. ``schedule`` is a digest
    of its schedule, ``""`` if it was not read. ``scheduler`` is its scheduler class, as ``module:Class``.
    ``clock_offset_ms`` is its clock minus the server's. ``not_ready`` has a detail for each
    :class:`~ha_beat.reasons.HealthReason` that keeps it from leading. Only a leader sets the fields from ``taken_up``
    on. More than 15 fields, as in the record.
    """

    id: str
    role: str = "standby"
    host: str = ""
    pid: int = 0
    version: str = ""
    since_ms: int = 0
    seen_ms: int = 0
    http: str = ""
    url: str = ""
    epoch: int = 0
    fingerprint: str = ""
    schedule: str = ""
    scheduler: str = ""
    clock_offset_ms: int = 0
    not_ready: Mapping[str, str] = field(default_factory=dict)
    #: True if this leader has loaded schedule and ledger.
    taken_up: bool = False
    entries: int = 0
    backlog: int = 0
    overdue_ms: int = 0
    upcoming: tuple[Upcoming, ...] = ()
    failing: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> str:
        # Not asdict, which copies each value: this runs every second or two on each replica.
        record = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in {"id", "seen_ms"}}
        record["upcoming"] = [[line.entry, line.task, line.at_ms] for line in self.upcoming]
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def parse(cls, replica_id: str, raw: str) -> Member | None:
        """Return the member from its record in Redis, or ``None`` if it is unreadable. Unknown fields are ignored."""
        try:
            record = {**json.loads(raw), "id": text_in(replica_id)}
            known: dict[str, Any] = {
                each.name: _of_kind(str(each.type), record[each.name]) for each in fields(cls) if each.name in record
            }
            known["upcoming"] = tuple(
                Upcoming(_of_kind("str", entry), _of_kind("str", task), ms_in(at_ms))
                for entry, task, at_ms in known.get("upcoming", ())
            )
            for name in ("not_ready", "failing"):
                known[name] = {text_in(key): _of_kind("str", detail) for key, detail in known.get(name, {}).items()}
            return cls(**known)
        except MALFORMED:
            return None

    def alive(self, server_ms: int) -> bool:
        # A record from the future was written before the server's clock was set back.
        return abs(server_ms - self.seen_ms) <= MEMBER_TIMEOUT * 1000


_PLAIN: Mapping[str, type] = {"str": str, "int": int, "bool": bool}


def _of_kind(kind: str, value: Any) -> Any:
    """Return the value of a field whose annotation is ``kind``, if it has that type and is within the limits."""
    if kind in _PLAIN and not isinstance(value, _PLAIN[kind]):
        raise TypeError(f"{value!r} is no {kind}")
    if kind == "int":
        return number_in(value, -LATEST_MS, LATEST_MS)
    return text_in(value) if kind == "str" else value


def _as_of(leader: LeaseRecord | None, member: Member) -> Member:
    """Return the member with the role ``leader`` only if the lease agrees: a dead leader's record still claims it."""
    leads = leader is not None and leader.holder == member.id
    return replace(member, role="standby") if member.role == "leader" and not leads else member


@dataclass(frozen=True, slots=True)
class ClusterView:
    """State of the cluster, read at one instant. ``members`` are alive, in the order of their ids.

    ``server_ms`` is the server's time. ``paused`` is the ledger's record of the pause (JSON), ``""`` if there is none.
    ``dropped`` is the number of messages that the workers' guard dropped.
    """

    server_ms: int
    lease: LeaseRecord | None
    members: tuple[Member, ...]
    gen: str
    highest_epoch: int
    journal_counter: int
    journal_length: int
    paused: str
    #: The ledger's record of the entries' pauses (JSON), ``""`` if there is none.
    paused_entries: str = ""
    dropped: int = 0
    #: Names of the records that cannot be read and are ignored.
    unreadable: tuple[str, ...] = ()

    @property
    def leader(self) -> LeaseRecord | None:
        """Return the lease if its holder leads, else ``None``."""
        return _leader(self.lease, self.server_ms)

    @property
    def leading_member(self) -> Member | None:
        """Return the leader's member record, or ``None`` if there is no leader or no record of it."""
        return next((member for member in self.members if member.role == "leader"), None)

    @property
    def taken_up(self) -> bool:
        """True if the leader has loaded schedule and ledger, by its member record."""
        leading = self.leading_member
        return leading is not None and leading.taken_up


def _leader(lease: LeaseRecord | None, server_ms: int) -> LeaseRecord | None:
    return lease if lease is not None and lease.leads(server_ms) else None


class Members:
    """Member records of one cluster."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._script = Script("members", although_full=True)
        self._reading = Script("members", read_only=True)

    def view(self, member: Member | None = None, *, clean: bool = False) -> ClusterView:
        """Read the state of the cluster, and write the record of ``member`` if given. ``clean`` removes old records.

        Raises:
            StoreError: Redis did not answer or refused.
        """
        reply = self._call(member, read=True, clean=clean)
        server_ms, lease, members, meta, length, dropped = reply
        gen, epoch, counter, paused, paused_entries = ("" if value is None else text(value) for value in meta)
        now = int(server_ms)
        record = LeaseRecord.parse(pairs(lease)) if lease else None
        leader = _leader(record, now)
        parsed = {name: Member.parse(name, raw) for name, raw in sorted(pairs(members).items())}
        return ClusterView(
            server_ms=now,
            lease=record,
            members=tuple(_as_of(leader, each) for each in parsed.values() if each is not None and each.alive(now)),
            gen=gen,
            highest_epoch=whole(epoch),
            journal_counter=whole(counter),
            journal_length=int(length),
            paused=paused,
            paused_entries=paused_entries,
            dropped=whole(dropped),
            unreadable=tuple(f"member {text_in(name)}" for name, each in parsed.items() if each is None),
        )

    def server_settings(self) -> ServerSettings | None:
        """Return the server's settings, or ``None`` if they cannot be read. Never raises."""
        try:
            return read_server_settings(self._client())
        except (StoreError, AttributeError):
            return None

    def announce(self, member: Member) -> int:
        """Write the record of a replica and return the server's time in ms. Raises like :meth:`view`."""
        return int(self._call(member, read=False, clean=False)[0])

    def server_ms(self) -> int:
        """Return the server's time in ms. Raises like :meth:`view`."""
        return int(self._call(None, read=False, clean=False)[0])

    def remove(self, replica_id: str) -> None:
        """Remove the record of a replica. Never raises: a record that stays counts as gone after a while."""
        with suppress(StoreError), mapped_redis_errors():
            self._client().hdel(self._keys.members, replica_id)

    def _call(self, member: Member | None, *, read: bool, clean: bool) -> Sequence[Any]:
        keys = [self._keys.members, self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.dropped]
        written = [member.id, member.encoded()] if member else ["", ""]
        args = [*written, int(read), int(clean), round(REMOVE_AFTER * 1000), MOST_RECORDS]
        # A server that refuses writes must still answer reads.
        script = self._script if member or clean else self._reading
        reply: Sequence[Any] = script(self._client(), keys, args)
        return reply
