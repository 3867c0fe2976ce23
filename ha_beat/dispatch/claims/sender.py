"""Sender of the messages of open claims, one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from celery.beat import ScheduleEntry

from ha_beat import failpoints
from ha_beat.budget import Budget
from ha_beat.clock import Clock
from ha_beat.dispatch.brokers.adapter import Delivery, Sent
from ha_beat.dispatch.claims import claim as machine
from ha_beat.dispatch.claims.claim import Claim, State
from ha_beat.dispatch.claims.send_rate import SendRate
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.messages.recipe import Recipes
from ha_beat.dispatch.protocol import Operation, PreparedMessage
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import PublishOutcome
from ha_beat.store.lease import Term


class Publisher(Protocol):
    """Connection to the broker."""

    @property
    def recipes(self) -> Recipes: ...

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage: ...

    def prepare_ahead(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage: ...

    def error_behind(self, exc: BaseException) -> StoreError | None: ...

    def ready(self) -> None: ...

    def make_way(self, message: PreparedMessage, progress: Callable[[], None]) -> bool: ...

    def send(self, message: PreparedMessage, delivery: Delivery, *, alone: bool) -> None: ...

    def settle(self, progress: Callable[[], None]) -> None: ...


class ClaimSender:
    """Sender of claims, which it finds and updates in ``claims``, by key."""

    def __init__(
        self,
        publisher: Publisher,
        claims: dict[str, Claim],
        trusted: Callable[[Term], bool],
        marker: LeaseMarker,
        clock: Clock,
    ) -> None:
        self._publisher = publisher
        self._claims = claims
        self._trusted = trusted
        self._marker = marker
        self._clock = clock
        #: Messages of the current chunk that were sent, by the keys of their claims.
        self._deliveries: dict[str, Delivery] = {}
        self.rate = SendRate()
        #: Error because of which messages of the batch were not sent.
        self.obstacle: StoreError | None = None

    def why_unavailable(self, term: Term, operations: Sequence[Operation]) -> str:
        """Return why no message can be sent now; empty if the broker accepts messages, or there is none to send."""
        self.obstacle = None
        sent = {State.PUBLISHED, State.ANSWERED}
        keys = [operation.key for operation in operations if operation.message is not None]
        if all(key in self._claims and self._claims[key].state in sent for key in keys):
            return ""
        try:
            self._publisher.ready()
            self._marker.require(term)
        except StoreUnavailable as exc:
            self.obstacle = exc
            return str(exc)
        return ""

    def send(self, term: Term, keys: Sequence[str], unavailable: str, budget: Budget) -> str:
        """Send the messages of open claims, and wait for their outcomes.

        ``unavailable`` is the result of :meth:`why_unavailable`. Return the same for the messages that follow.
        """
        elapsed, first_answer_at = self._clock.elapsed, 0.0

        def answered() -> None:
            nonlocal first_answer_at
            first_answer_at = first_answer_at or elapsed()
            budget.item_done()

        began, self._deliveries = elapsed(), {}
        try:
            for key in keys:
                unavailable = self._send(term, key, unavailable, budget)
                budget.item_done()
            sent_at = elapsed()
            self._publisher.settle(answered)
        finally:
            # A signal that stops the process may have ended the wait.
            self._publisher.settle(answered)
            self.take_outcomes()
            deliveries, self._deliveries = self._deliveries, {}
        sent = [delivery.sent for delivery in deliveries.values() if delivery.sent is not None]
        if count := sum(one.outcome is not PublishOutcome.UNSENT for one in sent):
            round_trip = max(first_answer_at - sent_at, 0.0)
            self.rate.measured((elapsed() - began - round_trip) / count, round_trip)
        return next((one.detail for one in sent if one.broken), unavailable)

    def take_outcomes(self) -> None:
        """Record the outcomes of messages that were sent, as far as they are known."""
        for key, delivery in list(self._deliveries.items()):
            # A second signal may have ended the wait for the others, whose claims then belong to an ended term.
            if delivery.sent is not None and key in self._claims:
                self._claims[key] = machine.published(self._claims[key], delivery.sent.outcome, delivery.sent.detail)

    def _send(self, term: Term, key: str, unavailable: str, budget: Budget) -> str:
        """Send the message of one claim. Takes and returns why no message can be sent, like :meth:`send`."""
        claim, message, alone = self._claims[key], self._claims[key].operation.message, True
        if claim.state is State.OPEN:
            obstacle = unavailable
            if not obstacle and message is not None:
                alone = self._publisher.make_way(message, budget.item_done)
            if not obstacle and not self._trusted(term):  # guard: claim-send-trusted
                # Another replica may lead by now, and record the open claims as uncertain.
                obstacle = "the term ended before the message was sent"
            if obstacle:
                self._claims[key] = machine.unsent(self._claims[key], obstacle)
                return unavailable
            failpoints.reach("before publish")
        claim = self._claims[key] = machine.publish_begun(self._claims[key])
        if claim.state is not State.PUBLISHING or message is None:
            return unavailable
        delivery = self._deliveries[key] = Delivery()
        try:
            self._publisher.send(message, delivery, alone=alone)
        except StoreUnavailable as exc:
            self.obstacle = exc
            delivery.sent = Sent(PublishOutcome.UNSENT, str(exc), broken=True)
        return delivery.sent.detail if delivery.sent is not None and delivery.sent.broken else unavailable
