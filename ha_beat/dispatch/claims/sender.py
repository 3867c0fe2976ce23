"""Sender of the messages of open claims, one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ha_beat import failpoints
from ha_beat.budget import Budget
from ha_beat.clock import Clock
from ha_beat.dispatch.brokers.adapter import Delivery, Sent
from ha_beat.dispatch.brokers.publisher import Publisher
from ha_beat.dispatch.claims.claim import Claim, ClaimState
from ha_beat.dispatch.claims.send_rate import SendRate
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.protocol import Operation
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import PublishOutcome
from ha_beat.store.lease import Term


class ClaimSender:
    """Sender of claims, which it finds and updates in ``claims``, by key. Call :meth:`begin_batch` first."""

    def __init__(
        self,
        publisher: Publisher,
        claims: dict[str, Claim],
        trusted: Callable[[Term], bool],
        marker: LeaseMarker,
        clock: Clock,
    ) -> None:
        """``trusted`` is True while this replica may assume that the term holds the lease."""
        self._publisher = publisher
        self._claims = claims
        self._trusted = trusted
        self._marker = marker
        self._clock = clock
        #: Messages of the current chunk that were sent, by the keys of their claims.
        self._deliveries: dict[str, Delivery] = {}
        self.rate = SendRate()
        #: Why no further message of the batch can be sent; empty if the broker accepts messages.
        self.unavailable = ""
        #: Error because of which messages of the batch were not sent.
        self.obstacle: StoreError | None = None

    def begin_batch(self, term: Term, operations: Sequence[Operation]) -> None:
        """Check the broker and the lease marker if the batch has a message that was not sent yet.

        Raises:
            FencedOff: another store's leader is at work.
        """
        self.obstacle, self.unavailable = None, ""
        sent = {ClaimState.PUBLISHED, ClaimState.ANSWERED}
        keys = [operation.key for operation in operations if operation.message is not None]
        if all(key in self._claims and self._claims[key].state in sent for key in keys):
            return
        try:
            self._publisher.ready()
            self._marker.require(term)
        except StoreUnavailable as exc:
            self.obstacle, self.unavailable = exc, str(exc)

    def send(self, term: Term, keys: Sequence[str], budget: Budget) -> None:
        """Send the messages of open claims, and wait for their outcomes."""
        elapsed, first_answer_at = self._clock.elapsed, 0.0

        def answered() -> None:
            nonlocal first_answer_at
            first_answer_at = first_answer_at or elapsed()
            budget.item_done()

        began, self._deliveries = elapsed(), {}
        try:
            for key in keys:
                self._send_one(term, key, budget)
                budget.item_done()
            sent_at = elapsed()
            self._publisher.wait_for_answers(answered)
        finally:
            # A signal that stops the process may have ended the wait.
            self._publisher.wait_for_answers(answered)
            self.take_outcomes()
            deliveries, self._deliveries = self._deliveries, {}
        sent = [delivery.sent for delivery in deliveries.values() if delivery.sent is not None]
        if count := sum(one.outcome is not PublishOutcome.UNSENT for one in sent):
            round_trip = max(first_answer_at - sent_at, 0.0)
            self.rate.measured((elapsed() - began - round_trip) / count, round_trip)
        self.unavailable = next((one.detail for one in sent if one.broken), self.unavailable)

    def take_outcomes(self) -> None:
        """Record the outcomes of messages that were sent, as far as they are known."""
        for key, delivery in list(self._deliveries.items()):
            # A second signal may have ended the wait for the others, whose claims then belong to an ended term.
            if delivery.sent is not None and key in self._claims:
                self._claims[key] = self._claims[key].published(delivery.sent.outcome, delivery.sent.detail)

    def _send_one(self, term: Term, key: str, budget: Budget) -> None:
        claim = self._claims[key]
        message, alone = claim.operation.message, True
        if claim.state is ClaimState.OPEN:
            obstacle = self.unavailable
            if not obstacle and message is not None:
                alone = self._publisher.wait_if_alone(message, budget.item_done)
            if not obstacle and not self._trusted(term):  # guard: claim-send-trusted
                # Another replica may lead by now, and record the open claims as uncertain.
                obstacle = "the term ended before the message was sent"
            if obstacle:
                self._claims[key] = self._claims[key].publish_abandoned(obstacle)
                return
            failpoints.reach("before publish")
        claim = self._claims[key] = self._claims[key].publish_begun()
        if claim.state is not ClaimState.PUBLISHING or message is None:
            return
        delivery = self._deliveries[key] = Delivery()
        try:
            self._publisher.send(message, delivery, alone=alone)
        except StoreUnavailable as exc:
            self.obstacle = exc
            delivery.sent = Sent(PublishOutcome.UNSENT, str(exc), broken=True)
        if delivery.sent is not None and delivery.sent.broken:
            self.unavailable = delivery.sent.detail
