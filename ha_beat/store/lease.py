"""Lease: its record in Redis, terms and campaigns, and the interface of its store.

The record has no TTL: Redis expires keys by its wall clock, which may step, and evicts keys with a TTL first. A standby
judges the lease by its own clock and takes it over by compare-and-set on ``(epoch, seq)``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

from ha_beat.reasons import CampaignRefusal, TermEnd, TermStart, parse_code
from ha_beat.store.scripts import whole

#: Longest lease that the settings allow, in ms. A longer one in a damaged record would delay a takeover for ever.
LONGEST_TTL_MS = 3_600_000

_FENCE_REASONS = {
    "no_lease": TermEnd.STATE_LOSS,
    "other_term": TermEnd.SUPERSEDED,
    "released": TermEnd.SUPERSEDED,
    "other_ledger": TermEnd.STATE_LOSS,
    "other_server": TermEnd.SERVER_CHANGED,
}


def fence_reason(code: str) -> TermEnd:
    """Return why a term is over whose work a script refused with ``code``."""
    return _FENCE_REASONS[code]


def new_token() -> str:
    """Return a random token."""
    return secrets.token_hex(16)


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
    #: Why the last term ended; ``None`` while it lasts, or if the code is unknown. ``detail`` names the caller.
    reason: TermEnd | None = None
    detail: str = ""
    gen: str = ""
    run_id: str = ""
    renewed_ms: int = 0
    #: Id of the replica that may campaign first after a release, ``""`` for none.
    preferred: str = ""
    #: The leader's scheduling time minus the server's, a number or ``""`` if it is unknown.
    offset_ms: str = ""

    @property
    def offset(self) -> float | None:
        """Return the leader's scheduling time minus the server's clock in seconds, or ``None`` if it is unknown."""
        try:
            return int(self.offset_ms) / 1000
        except (ValueError, OverflowError):
            return None

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
        values: dict[str, Any] = {
            each.name: whole(raw[each.name]) if each.type == "int" else raw[each.name]
            for each in fields(cls)
            if each.name in raw
        }
        values["reason"] = parse_code(TermEnd, raw.get("reason", ""))
        values["ttl_ms"] = min(values.get("ttl_ms", 0), LONGEST_TTL_MS)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class LeaseView:
    """Lease as it was observed; ``record`` is ``None`` without a lease.

    ``subscribers`` is the number of subscribers of the holder's presence channel, or -1 if it is unknown. ``run_id`` is
    given only if it is 0.
    """

    record: LeaseRecord | None
    subscribers: int
    server_ms: int
    run_id: str


# --- Campaign, renewal and release


@dataclass(frozen=True, slots=True)
class Expected:
    """State of the lease that a campaign is based on. With ``absent`` its presence channel has no subscriber."""

    epoch: int
    seq: int
    absent: bool = False


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


@dataclass(frozen=True, slots=True)
class Acquired:
    """Successful campaign. ``previous_gens`` are those of the lease and the ledger before it, ``""`` for none."""

    term: Term
    previous_gens: tuple[str, str]
    previous_run_id: str
    previous_holder: str
    presence: str
    server_ms: int
    #: Recovery that the previous leader did not complete, in the leader's encoding.
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

    ``presence`` is the channel now in the record, ``""`` if it had no subscriber. ``requests`` is the number of waiting
    requests.
    """

    presence: str
    server_ms: int
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """Refused renewal, because the term is over."""

    reason: TermEnd


class LeaseStore(Protocol):
    """Store of the lease. Every method raises ``StoreUnavailable`` if the outcome is unknown."""

    def observe(self) -> LeaseView:
        """Read the lease, and whether its holder is present."""
        ...

    def acquire(self, attempt: Attempt, expected: Expected | None, seen_epoch: int) -> Acquired | Refused:
        """Acquire the lease if it is still as expected (``None``: no record). The epoch exceeds ``seen_epoch``.

        Raises:
            ForeignApp: the ledger belongs to another app with the same cluster name.
            NewerSchema: a newer version has written the records.
        """
        ...

    def renew(self, term: Term, seq: int, presence: str) -> Renewed | Lost | Literal["late"]:
        """Renew the lease. The result is ``late`` if an attempt with this or a higher ``seq`` was executed before."""
        ...

    def release(self, term: Term, reason: TermEnd, detail: str = "", preferred: str = "") -> bool:
        """Release the lease and wake the standbys. Return False if the term was over.

        The other replicas wait a moment for the one with the id ``preferred``.
        """
        ...
