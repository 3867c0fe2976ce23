"""Lease store in memory. It follows the rules of the store in Redis, and passes the same contract tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from ha_beat.clock import Clock
from ha_beat.errors import ForeignApp, StoreUnavailable
from ha_beat.reasons import CampaignRefusal, TermEnd
from ha_beat.store.lease import (
    Acquired,
    Attempt,
    Expected,
    LeaseRecord,
    LeaseStore,
    LeaseView,
    Lost,
    Refused,
    Renewed,
    Term,
    new_token,
)
from ha_beat.store.presence import Presence, PresenceError

_T = TypeVar("_T")
_Released = Callable[[], None]


class MemoryLeaseStore:
    """:class:`ha_beat.store.lease.LeaseStore` in memory, for replicas in one process and one thread.

    ``clock`` is the server's. If :attr:`reachable` is False, every method raises ``StoreUnavailable`` and does nothing.
    If :attr:`lose_replies` is True, it raises after it has done its work.
    """

    def __init__(self, clock: Clock, cluster: str = "memory") -> None:
        self.cluster = cluster
        self.reachable = True
        self.lose_replies = False
        self.record: LeaseRecord | None = None
        self.subscribed: set[str] = set()
        self.on_release: list[_Released] = []
        self._clock = clock
        self._run_id = new_token()
        self._ledger_gen = ""
        self._ledger_epoch = 0
        self._ledger_run_id = ""
        self._fingerprint = ""

    # --- The protocol

    def observe(self) -> LeaseView:
        """Return the record, and whether its holder is present."""
        self._receive()
        count = self._subscribers(self.record.presence if self.record else "")
        return self._reply(LeaseView(self.record, count, self._now_ms(), self._run_id if count == 0 else ""))

    def acquire(self, attempt: Attempt, expected: Expected | None, seen_epoch: int) -> Acquired | Refused:
        """Acquire the lease if it is as ``expected`` (``None``: no lease). The epoch exceeds ``seen_epoch``.

        Raises:
            ForeignApp: the ledger belongs to another app.
        """
        self._receive()
        was = self.record
        if self._has_moved(expected):
            return self._reply(Refused(CampaignRefusal.MOVED))
        if was is not None and expected is not None and expected.absent and self._subscribers(was.presence) != 0:
            return self._reply(Refused(CampaignRefusal.HOLDER_PRESENT))
        replica = attempt.replica
        if self._fingerprint and self._fingerprint != replica.fingerprint:
            raise ForeignApp(self.cluster, replica.fingerprint, self._fingerprint)
        lease_gen, ledger_gen, previous_run_id = was.gen if was else "", self._ledger_gen, self._ledger_run_id
        torn = not ledger_gen or lease_gen not in ("", ledger_gen)
        gen = new_token() if torn else ledger_gen
        epoch = max((was.epoch if was else 0) + 1, self._ledger_epoch + 1, seen_epoch + 1, self._now_ms())
        presence = attempt.presence if self._subscribers(attempt.presence) > 0 else ""
        self.record = LeaseRecord(
            holder=replica.id,
            epoch=epoch,
            nonce=attempt.nonce,
            seq=1,
            ttl_ms=round(attempt.ttl * 1000),
            state="held",
            presence=presence,
            fingerprint=replica.fingerprint,
            version=replica.version,
            http=replica.http,
            host=replica.host,
            pid=replica.pid,
            since_ms=self._now_ms(),
            gen=gen,
            run_id=self._run_id,
            renewed_ms=self._now_ms(),
            offset_ms=str(round(attempt.offset * 1000)),
        )
        self._ledger_gen, self._ledger_epoch, self._ledger_run_id = gen, epoch, self._run_id
        self._fingerprint = replica.fingerprint
        acquired = Acquired(
            term=Term(replica.id, epoch, attempt.nonce, gen, self._run_id, attempt.trusted_until),
            previous_gens=(lease_gen, ledger_gen),
            previous_run_id=previous_run_id,
            previous_holder=was.holder if was else "",
            presence=presence,
            server_ms=self._now_ms(),
        )
        return self._reply(acquired)

    def renew(self, term: Term, seq: int, presence: str) -> Renewed | Lost | Literal["late"]:
        """Renew the lease under a term. Return ``late`` if an attempt with a higher ``seq`` was executed before."""
        self._receive()
        reason, record = self.refusal(term), self.record
        if reason is not None or record is None:
            return self._reply(Lost(reason or TermEnd.STATE_LOSS))
        if record.seq >= seq:
            return self._reply("late")
        counted = presence if self._subscribers(presence) > 0 else ""
        self.record = replace(record, seq=seq, presence=counted, renewed_ms=self._now_ms())
        return self._reply(Renewed(counted, self._now_ms()))

    def release(self, term: Term, reason: TermEnd, detail: str = "", preferred: str = "") -> bool:
        """Release the lease and wake the standbys. Return False if the term was over."""
        self._receive()
        if self.record is None or self._fence(term):
            return self._reply(False)
        self.record = replace(
            self.record, state="released", presence="", reason=reason, detail=detail, preferred=preferred
        )
        for wake in self.on_release:
            wake()
        return self._reply(True)

    # --- For the test

    def refusal(self, term: Term) -> TermEnd | None:
        """Return why work under the term would be refused now; ``None`` if it would be accepted."""
        reason = self._fence(term)
        if reason is not None:
            return reason
        if self._ledger_gen != term.gen:
            return TermEnd.STATE_LOSS
        return None if self._run_id == term.run_id else TermEnd.SERVER_CHANGED

    def lose_state(self) -> None:
        """Delete the lease and the ledger, as FLUSHALL does."""
        self.record, self._ledger_gen, self._ledger_epoch, self._ledger_run_id = None, "", 0, ""
        self._fingerprint = ""

    def restart(self) -> None:
        """Restart the server with its data. Every subscription ends."""
        self._run_id = new_token()
        self.subscribed.clear()

    # --- Rules

    def _has_moved(self, expected: Expected | None) -> bool:
        was = self.record
        if expected is None or was is None:
            return (was is None) != (expected is None)
        return (was.epoch, was.seq) != (expected.epoch, expected.seq)

    def _fence(self, term: Term) -> TermEnd | None:
        if self.record is None:
            return TermEnd.STATE_LOSS
        ours = (self.record.epoch, self.record.nonce) == (term.epoch, term.nonce)
        return None if ours and self.record.held else TermEnd.SUPERSEDED

    def _subscribers(self, channel: str) -> int:
        return int(channel in self.subscribed) if channel else -1

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    def _receive(self) -> None:
        if not self.reachable:
            raise StoreUnavailable("the server is unreachable", acted=False)

    def _reply(self, answer: _T) -> _T:
        if self.lose_replies:
            raise StoreUnavailable("the reply was lost")
        return answer


if TYPE_CHECKING:

    def _keeps_the_protocols(store: MemoryLeaseStore, presence: MemoryPresence) -> tuple[LeaseStore, Presence]:
        return store, presence


class MemoryPresence:
    """Presence of one replica at a :class:`MemoryLeaseStore`. :meth:`wait` advances the clock."""

    def __init__(self, store: MemoryLeaseStore, clock: Clock) -> None:
        self.channel = ""
        self._store = store
        self._clock = clock
        self._woken = False
        store.on_release.append(self._wake)

    def open(self) -> None:
        """Subscribe to a new channel.

        Raises:
            PresenceError: the store is unreachable.
        """
        self.close()
        if not self._store.reachable:
            raise PresenceError("the server is unreachable")
        self.channel = f"presence:{new_token()}"
        self._store.subscribed.add(self.channel)

    def wait(self, seconds: float) -> bool:
        """Wait until the lease is released, for ``seconds`` but at most 0.1 s. Return True if it was released.

        The limit allows several replicas to share one thread.

        Raises:
            PresenceError: the connection ended.
        """
        if self.channel not in self._store.subscribed:
            self.channel = ""
            raise PresenceError("the connection has ended")
        woken, self._woken = self._woken, False
        if not woken:
            self._clock.sleep(min(seconds, 0.1))
        return woken

    def wake(self) -> None:
        """Do nothing: each wait is short."""

    def close(self) -> None:
        """Unsubscribe."""
        self._store.subscribed.discard(self.channel)
        self.channel = ""

    def cut(self) -> None:
        """End the connection, as a network failure does. The replica notices it in its next :meth:`wait`."""
        self._store.subscribed.discard(self.channel)

    def _wake(self) -> None:
        self._woken = bool(self.channel)
