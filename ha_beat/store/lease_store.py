"""Store of the lease in Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ha_beat.errors import ForeignApp, NewerSchema, StoreUnavailable
from ha_beat.reasons import CampaignRefusal, TermEnd
from ha_beat.store.keys import Keys
from ha_beat.store.lease import (
    Acquired,
    Attempt,
    Expected,
    LeaseRecord,
    LeaseView,
    Lost,
    Refused,
    Renewed,
    Term,
    fence_reason,
    new_token,
)
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Poll, Script, pairs, text, whole

if TYPE_CHECKING:
    import redis

#: Version of the records in Redis. A replica that knows only a lower one does not lead.
SCHEMA = 2


class RedisLeaseStore:
    """:class:`~ha_beat.store.lease.LeaseStore` in Redis, or in a compatible server that runs Lua scripts."""

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
        self._journal_age_ms = "" if journal_age is None else str(round(journal_age * 1000))
        self._journal_size = "" if journal_size is None else str(journal_size)
        self._offset = offset
        self._wait_replicas = wait_replicas
        self._wait_ms = round(wait_timeout * 1000)
        #: Last view and its digest. Most polls find the lease unchanged.
        self._view = LeaseView(None, 0, 0, "")
        self._digest = ""
        self._observe = Poll("observe")
        self._acquire = Script("acquire", although_full=True)
        self._renew = Script("renew", although_full=True)
        self._release = Script("release", although_full=True)

    def observe(self) -> LeaseView:
        answer = self._observe(self._client(), [self._keys.lease], [self._digest])
        view = self._view
        if isinstance(answer, int):
            return LeaseView(view.record, view.subscribers, answer, view.run_id)
        flat, count, server_ms, run_id, digest = answer
        record = LeaseRecord.parse(pairs(flat)) if flat else None
        self._view = LeaseView(record, int(count), int(server_ms), text(run_id))
        self._digest = text(digest)
        return self._view

    def acquire(self, attempt: Attempt, expected: Expected | None, seen_epoch: int) -> Acquired | Refused:
        replica = attempt.replica
        seen = (expected.epoch, expected.seq, int(expected.absent)) if expected else ("", "", 0)
        args: list[Any] = [
            *seen,
            seen_epoch,
            replica.fingerprint,
            new_token(),
            attempt.presence,
            SCHEMA,
            attempt.reason,
        ]
        args += [replica.id, self._journal_size, *_fields_of(attempt)]
        reply = self._acquire(self._client(), [self._keys.lease, self._keys.ledger, self._keys.journal], args)
        answer, *rest = (text(part) for part in reply)
        match answer:
            case "foreign_app":
                raise ForeignApp(self._keys.cluster, replica.fingerprint, rest[0])
            case "newer_schema":
                raise NewerSchema(self._keys.cluster, SCHEMA, whole(rest[0]))
            case "refused":
                return Refused(CampaignRefusal(rest[0]))
        epoch, gen, lease_gen, ledger_gen, run_id, previous_run_id, unfinished, server_ms, presence, holder = rest
        return Acquired(
            term=Term(replica.id, int(epoch), attempt.nonce, gen, run_id, attempt.trusted_until),
            previous_gens=(lease_gen, ledger_gen),
            previous_run_id=previous_run_id,
            previous_holder=holder,
            presence=presence,
            server_ms=int(server_ms),
            unfinished=unfinished,
        )

    def renew(self, term: Term, seq: int, presence: str) -> Renewed | Lost | Literal["late"]:
        offset_ms = round(self._offset() * 1000)
        reply = self._renew(
            self._client(),
            [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.requests],
            [term.epoch, term.nonce, seq, presence, term.gen, term.run_id, self._journal_age_ms, offset_ms],
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
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal]
        args = [term.epoch, term.nonce, reason, detail, self._keys.wake, preferred]
        return bool(self._release(self._client(), keys, args))


def _fields_of(attempt: Attempt) -> list[Any]:
    """Return names and values of the record's fields that the script only stores."""
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
    return [part for field in record.items() for part in field]
