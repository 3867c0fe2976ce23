"""Dispatch to a broker that is not the lease's Redis: claim, publish, confirm.

The claim is written, under the fence, right before the message is sent; the confirmation right after the broker has
accepted the message. A claim without a confirmation is an occurrence of unknown outcome, and is sent again only under
the policy ``republish``.

- :mod:`~ha_beat.dispatch.claims.batches` carries out a batch. Only as much is claimed as can be sent in the time of
  one batch. A retry continues each claim where the last attempt stopped: no message is sent twice.
- :mod:`~ha_beat.dispatch.claims.claim` decides what each outcome leads to, and
  :mod:`~ha_beat.dispatch.claims.updates` what is written then.
- :mod:`~ha_beat.dispatch.claims.own_claims`: if the lease ends first, accepted messages are still recorded, and the
  claims of messages that were certainly not sent are marked as unsent. If the process is stopped, the claims that were
  not sent are taken back.
- :mod:`~ha_beat.dispatch.claims.earlier_claims`: a newer term takes unsent claims back and sends their messages. It
  records open claims as uncertain once their messages cannot be on their way any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery.beat import ScheduleEntry

from ha_beat import events
from ha_beat.budget import Pace
from ha_beat.dispatch.brokers.publisher import Publisher
from ha_beat.dispatch.claims.batches import ClaimBatches
from ha_beat.dispatch.claims.earlier_claims import EarlierClaims
from ha_beat.dispatch.claims.own_claims import OwnClaims
from ha_beat.dispatch.claims.sender import ClaimSender
from ha_beat.dispatch.claims.store import ClaimStore
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.protocol import Answer, Dispatcher, OpenClaim, Operation, PreparedMessage
from ha_beat.errors import StoreError
from ha_beat.store.connections import Link
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow

if TYPE_CHECKING:
    import redis


class ClaimDispatcher(Dispatcher):
    """Dispatcher for any broker: hands messages to the publisher and claims to the modules above."""

    def __init__(
        self,
        publisher: Publisher,
        link: Link,
        keys: Keys,
        journal_size: int,
        confirm_for: float,
        trusted: Callable[[Term], bool],
        marker: LeaseMarker,
        pace: Pace,
        emit: Callable[[events.Event], None] = lambda _: None,
    ) -> None:
        """``confirm_for``: seconds for which a confirmation is retried before the batch counts as unanswered."""
        self._publisher = publisher
        self._pace = pace
        self.ledger = Ledger(link.client, keys)
        self.recipes = publisher.recipes
        self._store = ClaimStore(link, keys, journal_size)
        self._own = OwnClaims(self._store)
        self._earlier = EarlierClaims(self._store, self.ledger, emit)
        self._sender = ClaimSender(publisher, self._own.by_key, trusted, marker, pace.clock)
        self._batches = ClaimBatches(self._store, self._own, self._sender, confirm_for, pace)

    @property
    def capacity(self) -> int:
        return self._sender.rate.in_batch(self._pace.seconds)

    @property
    def obstacle(self) -> StoreError | None:
        return self._sender.obstacle

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage:
        return self._publisher.prepare(entry, args, kwargs, options)

    def prepare_ahead(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage:
        # The queues are declared when the message is sent.
        return self._publisher.prepare_ahead(entry, args, kwargs, options)

    def broker_error(self, exc: BaseException) -> StoreError | None:
        return self._publisher.broker_error(exc)

    def submit(self, term: Term, operations: Sequence[Operation], _: Callable[[], None] | None = None) -> list[Answer]:
        return self._batches.submit(term, operations)

    def drop_refused(self, operations: Sequence[Operation]) -> bool:
        return self._batches.drop_refused(operations)

    def open_claims(self, term: Term) -> list[OpenClaim]:
        return self._store.open_claims(term)

    def take_back(self, term: Term) -> frozenset[str]:
        return self._earlier.take_back(term)

    def record_uncertain(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        return self._earlier.record_uncertain(term, claims)

    def confirm_late(self) -> None:
        self._own.resolve_ended()

    def resolve_own(self, term: Term, client: redis.Redis) -> None:
        """Resolve the claims of a process that is being stopped, through its own connection ``client``.

        A message that was not sent is taken back, so that the next leader sends it. Call this while the term still
        holds the lease. It may run in a signal handler that has interrupted any method of this class. Raises nothing.
        """
        self._sender.take_outcomes()
        self._own.resolve_at_stop(term, client)
