"""Leases without an elector: replicas, attempts and terms for tests of the stores and of the leader."""

from typing import Any

from ha_beat.store.keys import Keys
from ha_beat.store.lease import Acquired, Attempt, Expected, LeaseStore, Replica, Term
from ha_beat.store.lease_store import RedisLeaseStore


def replica(name: str = "one", fingerprint: str = "app") -> Replica:
    return Replica(name, "host", 1, "0.1", fingerprint, "http://host:1")


def attempt(
    name: str = "one",
    nonce: str = "",
    presence: str = "",
    fingerprint: str = "app",
    *,
    sent_at: float = 100.0,
    ttl: float = 10.0,
) -> Attempt:
    """Return an attempt of a replica; its nonce is derived from the name by default. Times are in seconds."""
    nonce = nonce or f"nonce of {name}"
    return Attempt(replica(name, fingerprint), nonce, sent_at=sent_at, ttl=ttl, margin=1.0, presence=presence)


def current(store: LeaseStore, *, absent: bool = False) -> Expected | None:
    """Return the lease as it is now, as a candidate would expect it."""
    record = store.observe().record
    return Expected(record.epoch, record.seq, absent) if record else None


def acquire(store: LeaseStore, made: Attempt | None = None) -> Acquired:
    """Take the lease over from its holder, if it has one."""
    answer = store.acquire(made or attempt(), current(store), 0)
    assert isinstance(answer, Acquired), answer
    return answer


def begin_term(client: Any, keys: Keys, name: str = "one", **options: Any) -> Term:
    """Begin a term of a replica in the lease's Redis. The options are those of `attempt`."""
    return acquire(RedisLeaseStore(lambda: client, keys), attempt(name, **options)).term


def term(holder: str = "one", epoch: int = 1, *, trusted_until: float = float("inf"), **fields: str) -> Term:
    """Return a term that no store knows."""
    values = {"nonce": f"nonce of {holder}", "gen": "gen", "run_id": "run", **fields}
    return Term(holder, epoch, trusted_until=trusted_until, **values)
