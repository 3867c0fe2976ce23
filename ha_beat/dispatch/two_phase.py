"""Dispatch to a broker that is not the lease's Redis: claim, publish, confirm.

The claim is written, under the fence, right before the message is sent; the confirmation right after the broker has
accepted the message. A claim without a confirmation is an occurrence of unknown outcome, and is sent again only under
the policy ``republish``. :mod:`ha_beat.dispatch.claim` decides what is written for each outcome.

- A retry of a batch continues each claim where it stopped: no message is sent twice.
- If the lease ends first, :meth:`ClaimDispatcher.confirm_late` still records the messages that were accepted.
- If the process is stopped, :meth:`ClaimDispatcher.hand_back` takes back the claims that were not sent.
- A newer term records the claims that were left open as uncertain (:meth:`ClaimDispatcher.give_up`), once their
  messages cannot be on their way any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from celery.beat import ScheduleEntry
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from ha_beat import failpoints
from ha_beat.dispatch import claim as machine
from ha_beat.dispatch.broker_adapters import Sent
from ha_beat.dispatch.claim import Claim, Resolution, State, key_of
from ha_beat.dispatch.claim_store import ClaimStore
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.protocol import Answer, FencedOff, OpenClaim, Operation, PreparedMessage
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import AnswerKind, PublishOutcome
from ha_beat.store.connections import Link
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow

if TYPE_CHECKING:
    import redis

#: Occurrences that are claimed before the first of them is sent. Few, so that a claim is young when it is sent.
_CHUNK = 20


class MessageSender(Protocol):
    """Connection to the broker."""

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage: ...

    def error_behind(self, exc: BaseException) -> StoreError | None: ...

    def ready(self) -> None: ...

    def send(self, message: PreparedMessage) -> Sent: ...


class ClaimDispatcher:
    """Dispatcher for any broker. It keeps the claims of unanswered batches, so that a retry sends nothing twice."""

    whole_batches = False

    def __init__(
        self,
        publisher: MessageSender,
        link: Link,
        keys: Keys,
        journal_size: int,
        confirm_for: float,
        trusted: Callable[[Term], bool],
        marker: LeaseMarker,
    ) -> None:
        """``confirm_for``: seconds for which a confirmation is retried before the batch counts as unanswered."""
        self._publisher = publisher
        self._store = ClaimStore(link, keys, journal_size)
        self._confirm_for = confirm_for
        self._trusted = trusted
        self._marker = marker
        self.ledger = Ledger(link.client, keys)
        #: Claims of batches that are not answered yet, by key.
        self._claims: dict[str, Claim] = {}
        #: Claims of earlier terms whose messages were accepted and not confirmed yet.
        self._unconfirmed: list[Claim] = []

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage:
        return self._publisher.prepare(entry, args, kwargs, options)

    def broker_error(self, exc: BaseException) -> StoreError | None:
        return self._publisher.error_behind(exc)

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        self._drop_earlier_terms(term)
        unavailable = self._why_unavailable(term, operations)
        answers: list[Answer] = []
        for start in range(0, len(operations), _CHUNK):
            chunk, unavailable = self._submit(term, operations[start : start + _CHUNK], unavailable)
            answers += chunk
        for operation in operations:
            self._claims.pop(key_of(operation), None)
        return answers

    def confirm_late(self) -> None:
        accepted = [claim for claim in self._claims.values() if claim.accepted]
        self._store.resolve([machine.update_for(claim) for claim in (*self._unconfirmed, *accepted)])
        self._unconfirmed = []
        for claim in accepted:
            self._claims[claim.key] = machine.resolved(claim)

    def hand_back(self, term: Term, client: redis.Redis) -> None:
        """Resolve the claims of a process that is being stopped, through its own connection ``client``.

        A message that was not sent is taken back, so that the next leader sends it. Call this while the term still
        holds the lease. It may run in a signal handler that has interrupted any method of this class, and never raises.
        """
        for claim in list(self._claims.values()):
            self._claims[claim.key] = machine.unsent(claim, "this replica was stopped")
        ours = [claim for claim in self._claims.values() if claim.nonce == term.nonce]
        final, taken_back = _updates(ours)
        with suppress(StoreError, FencedOff):
            self._store.resolve(final, client=client)
            self._store.resolve(taken_back, term, client)

    def open_claims(self, term: Term) -> list[OpenClaim]:
        return self._store.open_claims(term)

    def give_up(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        updates = [machine.give_up_update(claim) for claim in claims]
        were_open = self._store.resolve([update for update, _ in updates], term)
        return {
            update.entry: row
            for (update, row), was_open in zip(updates, were_open, strict=True)
            if row is not None and was_open
        }

    # --- One batch

    def _drop_earlier_terms(self, term: Term) -> None:
        """Drop the claims of earlier terms, except for messages that were accepted: those are confirmed."""
        for key, claim in list(self._claims.items()):
            if claim.nonce != term.nonce:
                del self._claims[key]
                if claim.accepted:
                    self._unconfirmed.append(claim)
        if self._unconfirmed:
            self.confirm_late()

    def _why_unavailable(self, term: Term, operations: Sequence[Operation]) -> str:
        """Return why no message can be sent now; empty if the broker is ready or there is no message to send."""
        sent = {State.PUBLISHED, State.ANSWERED}
        keys = [key_of(operation) for operation in operations if operation.message is not None]
        if all(key in self._claims and self._claims[key].state in sent for key in keys):
            return ""
        try:
            self._publisher.ready()
            self._marker.require(term)
        except StoreUnavailable as exc:
            return str(exc)
        return ""

    def _submit(self, term: Term, operations: Sequence[Operation], unavailable: str) -> tuple[list[Answer], str]:
        """Claim, publish and confirm. Return the answers, and why nothing more can be sent."""
        sends = any(operation.message is not None for operation in operations)
        reach: Callable[[str], None] = failpoints.reach if sends else lambda _: None
        reach("before claim")
        answers = self._write_claims(term, operations, unavailable)
        keys = [key_of(op) for op, answer in zip(operations, answers, strict=True) if answer is None]
        reach("claimed")
        for key in keys:
            unavailable = self._publish(term, key, unavailable)
        reach("published")
        self._confirm(term, keys)
        reach("confirmed")
        for key in keys:
            self._claims[key] = machine.resolved(self._claims[key])
        complete = [
            answer or self._claims[key_of(op)].answer or Answer(AnswerKind.ERROR)
            for op, answer in zip(operations, answers, strict=True)
        ]
        return complete, unavailable

    def _write_claims(self, term: Term, operations: Sequence[Operation], unavailable: str) -> list[Answer | None]:
        """Write the claims and run the operations without a message. An open claim has no answer yet."""
        answers: list[Answer | None] = [None] * len(operations)
        writes: list[tuple[int, Operation]] = []
        for number, operation in enumerate(operations):
            if operation.message is None:
                writes.append((number, operation))
                continue
            claim = self._claims.get(key_of(operation))
            if claim is None:
                if unavailable:
                    answers[number] = Answer(AnswerKind.UNSENT, unavailable)
                    continue
                claim = self._claims[key_of(operation)] = machine.new_claim(term, operation)
            answers[number] = claim.answer
            if claim.must_be_written:
                writes.append((number, self._store.operation_for(claim)))
        if not writes:
            return answers
        keys = {number: key_of(operation) for number, operation in writes if operation.message is not None}
        for key in keys.values():
            self._claims[key] = machine.write_begun(self._claims[key])
        written = self._store.write(term, [operation for _, operation in writes])
        for (number, _), answer in zip(writes, written, strict=True):
            answers[number] = answer
            if number in keys:
                claim = self._claims[keys[number]] = machine.write_answered(self._claims[keys[number]], answer)
                answers[number] = claim.answer
        return answers

    def _publish(self, term: Term, key: str, unavailable: str) -> str:
        """Send the message of an open claim. Return why nothing more can be sent."""
        if self._claims[key].state is State.OPEN:
            obstacle = unavailable
            if not obstacle and not self._trusted(term):  # guard: claim-send-trusted
                # Another replica may lead by now, and record the open claims as uncertain.
                obstacle = "the term ended before the message was sent"
            if obstacle:
                self._claims[key] = machine.unsent(self._claims[key], obstacle)
                return unavailable
            failpoints.reach("before publish")
        claim = self._claims[key] = machine.publish_begun(self._claims[key])
        if claim.state is not State.PUBLISHING or claim.operation.message is None:
            return unavailable
        try:
            sent = self._publisher.send(claim.operation.message)
        except StoreUnavailable as exc:
            self._claims[key] = machine.published(claim, PublishOutcome.UNSENT, str(exc))
            return str(exc)
        self._claims[key] = machine.published(claim, sent.outcome, sent.detail)
        return sent.detail if sent.broken else unavailable

    def _confirm(self, term: Term, keys: Sequence[str]) -> None:
        """Write the resolution of published claims, with retries."""
        final, taken_back = _updates([self._claims[key] for key in keys])
        retrying = Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_after_delay(self._confirm_for),
            reraise=True,
        )
        retrying(self._store.resolve, final)
        retrying(self._store.resolve, taken_back, term)


def _updates(claims: Sequence[Claim]) -> tuple[list[machine.Update], list[machine.Update]]:
    """Return the updates of published claims: those that are not fenced, and those that take a claim back."""
    final, taken_back = [], []
    for claim in claims:
        if claim.state is State.PUBLISHED:
            match machine.resolution(claim):
                case Resolution.CONFIRM | Resolution.RECORD_UNCERTAIN:
                    final.append(machine.update_for(claim))
                case Resolution.TAKE_BACK:
                    taken_back.append(machine.update_for(claim))
                case Resolution.KEEP_OPEN:
                    pass
    return final, taken_back
