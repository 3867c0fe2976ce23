"""Lease record in Redis, and the operations on it.

The record has no TTL: Redis expires keys by its wall clock, which may step, and evicts keys with a TTL first. A standby
judges the lease by its own clock and takes it over by compare-and-set on ``(epoch, seq)``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ha_beat.errors import ForeignApp, NewerSchema, StoreUnavailable
from ha_beat.reasons import CampaignRefusal, TermEnd, TermStart, parse_code
from ha_beat.store.keys import Keys
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Poll, Script, pairs, text, whole

if TYPE_CHECKING:
    import redis

#: Version of the records in Redis. A replica that knows only a lower one does not lead.
SCHEMA = 2

#: Longest lease that the settings allow, in ms. A longer one in a record would delay a takeover for ever.
LONGEST_TTL_MS = 3_600_000

#: How a term ended, by the code with which a script refuses work under it.
_FENCES = {
    "no_lease": TermEnd.STATE_LOSS,
    "other_term": TermEnd.SUPERSEDED,
    "released": TermEnd.SUPERSEDED,
    "other_ledger": TermEnd.STATE_LOSS,
    "other_server": TermEnd.SERVER_CHANGED,
}


def fence_reason(code: str) -> TermEnd:
    """Return how a term ended that a script refused with ``code``."""
    return _FENCES[code]


@dataclass(frozen=True, slots=True)
class Replica:
    """One beat process."""

    id: str
    host: str
    pid: int
    version: str
    fingerprint: str
    http: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Term:
    """One period of leadership.

    ``trusted_until`` is on :meth:`Clock.elapsed`. ``gen`` names the incarnation of the state in Redis, and ``run_id``
    the server process. Work under the term is refused if either has changed.
    """

    holder: str
    epoch: int
    nonce: str
    gen: str
    run_id: str
    trusted_until: float

    def trusted(self, now: float) -> bool:
        """True if the leader may act. ``now`` is on :meth:`Clock.elapsed`."""
        return now < self.trusted_until  # guard: trust-window

    def until(self, trusted_until: float) -> Term:
        """Return this term with another end of trust."""
        return replace(self, trusted_until=trusted_until)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Lease in Redis. Times are the server's, in ms since the Unix epoch. More than 15 fields, as in the hash."""

    holder: str = ""
    epoch: int = 0
    nonce: str = ""
    seq: int = 0
    ttl_ms: int = 0
    state: str = "released"
    presence: str = ""
    fingerprint: str = ""
    version: str = ""
    http: str = ""
    host: str = ""
    pid: int = 0
    since_ms: int = 0
    #: Why the last term ended; ``None`` while it lasts, or if the code is unknown. ``detail`` names who asked.
    reason: TermEnd | None = None
    detail: str = ""
    gen: str = ""
    run_id: str = ""
    renewed_ms: int = 0
    preferred: str = ""
    #: The leader's time minus the server's, ``""`` if it is unknown.
    offset_ms: str = ""

    @property
    def offset(self) -> float | None:
        """Return the leader's scheduling time minus the server's clock in seconds, or ``None`` if it is unknown."""
        return _seconds(self.offset_ms)

    @property
    def held(self) -> bool:
        return self.state == "held"

    def silent_ms(self, server_ms: int) -> int:
        """Return the time since the last renewal, by the server's clock."""
        return server_ms - self.renewed_ms

    def leads(self, server_ms: int) -> bool:
        """True if the holder leads: the lease is held, and was renewed within its ttl by the server's clock."""
        return self.held and self.silent_ms(server_ms) <= self.ttl_ms

    @classmethod
    def parse(cls, raw: Mapping[str, str]) -> LeaseRecord:
        """Return the record from its hash. Unknown fields are ignored, and an unreadable number is 0."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in raw:
                value = raw[field.name]
                values[field.name] = whole(value) if field.type == "int" else value
        if "reason" in values:
            values["reason"] = parse_code(TermEnd, values["reason"])
        values["ttl_ms"] = min(values.get("ttl_ms", 0), LONGEST_TTL_MS)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class LeaseView:
    """Result of :meth:`LeaseStore.observe`.

    ``subscribers`` is the number of subscribers of the holder's presence channel, or -1 if it is unknown. ``run_id`` is
    given only if it is 0.
    """

    record: LeaseRecord | None
    subscribers: int
    server_ms: int
    run_id: str


@dataclass(frozen=True, slots=True)
class Acquired:
    """Successful campaign. ``previous_gens`` are those of the lease and the ledger before it, ``""`` for none."""

    term: Term
    previous_gens: tuple[str, str]
    previous_run_id: str
    previous_holder: str
    presence: str
    server_ms: int
    #: Doubt that the last leader found and did not resolve before its term ended, in the leader's encoding.
    unfinished: str = ""

    @property
    def server_changed(self) -> bool:
        """True if the last takeover was completed on another server process. False if that is unknown."""
        return self.term.run_id != "" and self.previous_run_id not in ("", self.term.run_id)


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused campaign."""

    reason: CampaignRefusal


@dataclass(frozen=True, slots=True)
class Renewed:
    """Successful renewal.

    ``presence`` is the channel now in the record, ``""`` if it had no subscriber. ``requests`` is the number of
    requests that wait.
    """

    presence: str
    server_ms: int
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """Refused renewal, because the term is over."""

    reason: TermEnd


@dataclass(frozen=True, slots=True)
class Expected:
    """State of the lease that a campaign is based on. With ``absent`` its presence channel has no subscriber."""

    epoch: int
    seq: int
    absent: bool = False


class LeaseStore(Protocol):
    """Store of the lease. Every method raises ``StoreUnavailable`` if the outcome is unknown."""

    def observe(self) -> LeaseView: ...

    def acquire(self, attempt: Attempt, expected: Expected | None, seen_epoch: int) -> Acquired | Refused: ...

    def renew(self, term: Term, seq: int, presence: str) -> Renewed | Lost | Literal["late"]: ...

    def release(self, term: Term, reason: TermEnd, detail: str = "", preferred: str = "") -> bool: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One campaign. By its nonce the replica recognises the record if the reply is lost."""

    replica: Replica
    nonce: str
    sent_at: float
    ttl: float
    margin: float
    presence: str
    reason: TermStart = TermStart.NO_LEASE
    #: Scheduling time of the term minus Redis' clock, in seconds.
    offset: float = 0.0

    @property
    def trusted_until(self) -> float:
        """Return the end of trust, counted from the send: the reply may be slow."""
        return self.sent_at + self.ttl - self.margin


def new_token() -> str:
    """Return a random token."""
    return secrets.token_hex(16)


class RedisLeaseStore:
    """Lease in Redis, or in a compatible server that runs Lua scripts."""

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        keys: Keys,
        journal_age: float | None = None,
        *,
        journal_size: int | None = None,
        offset: Callable[[], float] = lambda: 0.0,
        wait_replicas: int = 0,
        wait_timeout: float = 1.0,
    ) -> None:
        """``journal_age`` is in seconds: renewals trim older records from the journal. Acquisitions trim it to about
        ``journal_size`` records.

        ``offset`` returns the scheduling time minus Redis' clock, in seconds. A renewal is confirmed once
        ``wait_replicas`` replicas of Redis have it, within ``wait_timeout`` seconds.
        """
        self._client = client
        self._keys = keys
        self._offset_ms: Callable[[], int] = lambda: round(offset() * 1000)
        self._wait_replicas = wait_replicas
        self._wait_ms = round(wait_timeout * 1000)
        self._journal_age_ms = "" if journal_age is None else str(round(journal_age * 1000))
        #: What was last observed, and its digest. Most polls find it unchanged.
        self._seen = LeaseView(None, 0, 0, "")
        self._digest = ""
        self._journal_size = "" if journal_size is None else str(journal_size)
        self._observe = Poll("observe")
        self._acquire = Script("acquire", although_full=True)
        self._renew = Script("renew", although_full=True)
        self._release = Script("release", although_full=True)

    def observe(self) -> LeaseView:
        """Read the lease, and whether its holder is present."""
        answer = self._observe(self._client(), [self._keys.lease], [self._digest])
        seen = self._seen
        if isinstance(answer, int):
            return LeaseView(seen.record, seen.subscribers, answer, seen.run_id)
        flat, count, server_ms, run_id, digest = answer
        record = LeaseRecord.parse(pairs(flat)) if flat else None
        self._seen = LeaseView(record, int(count), int(server_ms), text(run_id))
        self._digest = text(digest)
        return self._seen

    def acquire(self, attempt: Attempt, expected: Expected | None, seen_epoch: int) -> Acquired | Refused:
        """Acquire the lease if it is still as expected (``None``: no record).

        Raises:
            ForeignApp: the ledger belongs to another app with the same cluster name.
            NewerSchema: a newer version has written the records.
            StoreUnavailable: the outcome is unknown.
        """
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal]
        reply = self._acquire(self._client(), keys, _acquire_args(attempt, expected, seen_epoch, self._journal_size))
        answer, *rest = (text(part) for part in reply)
        match answer:
            case "foreign_app":
                raise ForeignApp(self._keys.cluster, attempt.replica.fingerprint, rest[0])
            case "newer_schema":
                raise NewerSchema(self._keys.cluster, SCHEMA, whole(rest[0]))
            case "refused":
                return Refused(CampaignRefusal(rest[0]))
            case _:
                return _acquired(attempt, rest)

    def renew(self, term: Term, seq: int, presence: str) -> Renewed | Lost | Literal["late"]:
        """Renew the lease. The result is ``late`` if an attempt with a higher ``seq`` was executed before."""
        reply = self._renew(
            self._client(),
            [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.requests],
            [term.epoch, term.nonce, seq, presence, term.gen, term.run_id, self._journal_age_ms, self._offset_ms()],
        )
        answer, detail, *rest = (text(part) for part in reply)
        if answer == "renewed":
            self._await_replicas()
            return Renewed(detail, int(rest[0]), int(rest[1]))
        return "late" if answer == "late" else Lost(fence_reason(detail))

    def _await_replicas(self) -> None:
        """Wait until enough replicas of Redis have the renewal.

        Raises:
            StoreUnavailable: too few replicas have it.
        """
        if not self._wait_replicas:
            return
        with mapped_redis_errors():
            client: Any = self._client()
            reached: int = client.wait(self._wait_replicas, self._wait_ms)
        if int(reached) < self._wait_replicas:  # guard: renew-wait-replicas
            raise StoreUnavailable(f"{reached} of {self._wait_replicas} replicas of Redis have the renewal")

    def release(self, term: Term, reason: TermEnd, detail: str = "", preferred: str = "") -> bool:
        """Release the lease and wake the standbys. Return False if the term was over before.

        ``preferred`` is the id of the replica to lead next: the others wait for it for a moment. The result
        is a bool, not an outcome: the caller stops leading either way, also if the release is unknown.
        """
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal]
        return bool(
            self._release(self._client(), keys, [term.epoch, term.nonce, reason, detail, self._keys.wake, preferred])
        )


def _acquire_args(attempt: Attempt, expected: Expected | None, seen_epoch: int, journal_size: str) -> list[Any]:
    replica = attempt.replica
    record = {
        "nonce": attempt.nonce,
        "ttl_ms": round(attempt.ttl * 1000),
        "fingerprint": replica.fingerprint,
        "version": replica.version,
        "http": replica.http,
        "host": replica.host,
        "pid": replica.pid,
        "offset_ms": round(attempt.offset * 1000),
    }
    return [
        expected.epoch if expected else "",
        expected.seq if expected else "",
        "1" if expected and expected.absent else "0",
        seen_epoch,
        replica.fingerprint,
        new_token(),
        attempt.presence,
        SCHEMA,
        attempt.reason,
        replica.id,
        journal_size,
        *(item for pair in record.items() for item in pair),
    ]


def _acquired(attempt: Attempt, reply: Sequence[str]) -> Acquired:
    epoch, gen, lease_gen, ledger_gen, run_id, previous_run_id, unfinished, server_ms, *rest = reply
    presence, previous_holder = rest
    return Acquired(
        term=Term(attempt.replica.id, int(epoch), attempt.nonce, gen, run_id, attempt.trusted_until),
        previous_gens=(lease_gen, ledger_gen),
        previous_run_id=previous_run_id,
        previous_holder=previous_holder,
        presence=presence,
        server_ms=int(server_ms),
        unfinished=unfinished,
    )


def _seconds(milliseconds: str) -> float | None:
    try:
        return int(milliseconds) / 1000
    except (ValueError, OverflowError):
        return None
