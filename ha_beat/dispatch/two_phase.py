"""Dispatch to a broker that is not the lease's Redis: claim, publish, confirm.

The claim is written, under the fence, right before the message is sent; the confirmation right after the broker has
accepted the message. A claim without a confirmation is an occurrence of unknown outcome, and is sent again only under
the policy ``republish``. :mod:`ha_beat.dispatch.claims.claim` decides what is written for each outcome.

- A retry of a batch continues each claim where it stopped: no message is sent twice.
- If the lease ends first, :meth:`ClaimDispatcher.confirm_late` still records the messages that were accepted, and
  marks the claims whose messages were certainly not sent as unsent. The next term takes these back and sends them.
- If the process is stopped, :meth:`ClaimDispatcher.resolve_own` takes back the claims that were not sent.
- Only as much is claimed as can be sent in the time of one batch.
- A newer term records the claims that were left open as uncertain (:meth:`ClaimDispatcher.record_uncertain`), once
  their messages cannot be on their way any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from celery.beat import ScheduleEntry
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from ha_beat import events, failpoints
from ha_beat.budget import Budget, Pace
from ha_beat.dispatch.claims import claim as machine
from ha_beat.dispatch.claims.claim import Claim, Resolution, State
from ha_beat.dispatch.claims.sender import ClaimSender, Publisher
from ha_beat.dispatch.claims.store import ClaimStore
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.messages.recipe import Recipes
from ha_beat.dispatch.protocol import Answer, FencedOff, OpenClaim, Operation, PreparedMessage
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import AnswerKind, SkipReason, Verdict
from ha_beat.store.connections import Link
from ha_beat.store.journal import VerdictRecord, parse
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow

if TYPE_CHECKING:
    import redis


class ClaimDispatcher:
    """Dispatcher for any broker. It keeps the claims of unanswered batches, so that a retry sends nothing twice.

    It has more than 15 methods: half are the interface of a dispatcher, the others its three phases.
    """

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
        self._store = ClaimStore(link, keys, journal_size)
        self._confirm_for = confirm_for
        self._pace = pace
        self._emit = emit
        self.ledger = Ledger(link.client, keys)
        #: Claims of batches that are not answered yet, by key.
        self._claims: dict[str, Claim] = {}
        self._sender = ClaimSender(publisher, self._claims, trusted, marker, pace.clock)
        #: True if a part of the last batch has answers.
        self._partly_answered = False
        #: Claims of ended terms that are to be confirmed or marked as unsent.
        self._ended: list[Claim] = []

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

    @property
    def recipes(self) -> Recipes:
        return self._publisher.recipes

    def prepare_ahead(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PreparedMessage:
        # Queues are declared when it is sent.
        return self._publisher.prepare_ahead(entry, args, kwargs, options)

    def pack(self, _: Operation) -> bytes:
        """Return nothing: a claim is written in place of the operation."""
        return b""

    def broker_error(self, exc: BaseException) -> StoreError | None:
        return self._publisher.error_behind(exc)

    def submit(self, term: Term, operations: Sequence[Operation], _: Callable[[], None] | None = None) -> list[Answer]:
        self._partly_answered = False
        self._drop_earlier_terms(term)
        unavailable = self._sender.why_unavailable(term, operations)
        answers: dict[int, Answer] = {}
        left, budget = list(enumerate(operations)), self._pace.begin()
        try:
            while left:
                if answers and budget.spent:
                    answers |= {number: Answer(AnswerKind.DEFERRED) for number, op in left if self._may_wait(op)}
                    left = [(number, op) for number, op in left if number not in answers]
                size = self._chunk([op for _, op in left], budget)
                chunk, left = left[:size], left[size:]
                kinds, unavailable = self._submit_chunk(term, [op for _, op in chunk], unavailable, budget)
                answers |= {number: answer for (number, _), answer in zip(chunk, kinds, strict=True)}
                self._partly_answered = True
        except (FencedOff, SystemExit, KeyboardInterrupt):
            # The next term need not wait until it is certain that these messages are not on their way.
            self._end(lambda _: True)
            with suppress(StoreError):
                self._resolve_ended()
            raise
        for operation in operations:
            self._claims.pop(operation.key, None)
        return [answers[number] for number in range(len(operations))]

    def drop_refused(self, operations: Sequence[Operation]) -> bool:
        keys = {operation.key for operation in operations} & self._claims.keys()
        if self._partly_answered or any(self._claims[key].state is not State.WRITING for key in keys):
            return False
        for key in keys:
            del self._claims[key]
        return True

    def confirm_late(self) -> None:
        self._end(lambda _: True)
        self._resolve_ended()

    def take_back(self, term: Term) -> frozenset[str]:
        unsent = [claim for claim in self._store.open_claims(term) if claim.unsent]
        if not unsent:
            return frozenset()
        # Only the leader replaces rows, so that these stay as they are until the claims are resolved.
        rows = self.ledger.read_some({claim.entry for claim in unsent})
        updates = machine.take_back_updates(unsent, rows)
        were_open = self._store.resolve(updates, term)
        for update, was_open in zip(updates, were_open, strict=True):
            self._report_skipped(update.records if was_open else ())
        return frozenset(claim.entry for claim in unsent)

    def resolve_own(self, term: Term, client: redis.Redis) -> None:
        """Resolve the claims of a process that is being stopped, through its own connection ``client``.

        A message that was not sent is taken back, so that the next leader sends it. Call this while the term still
        holds the lease. It may run in a signal handler that has interrupted any method of this class, and never raises.
        """
        self._sender.take_outcomes()
        for claim in list(self._claims.values()):
            self._claims[claim.key] = machine.unsent(claim, "this replica was stopped")
        claims = [*self._claims.values(), *self._ended]
        final, taken_back = _updates([claim for claim in claims if claim.nonce == term.nonce])
        late = _late_updates([claim for claim in claims if claim.nonce != term.nonce])
        with suppress(StoreError):
            self._store.resolve([*final, *late], client=client)
            try:
                self._store.resolve(taken_back, term, client)
            except FencedOff:
                self._store.resolve(_late_updates(claims), client=client)

    def open_claims(self, term: Term) -> list[OpenClaim]:
        return self._store.open_claims(term)

    def record_uncertain(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        updates = [machine.uncertain_update(claim) for claim in claims]
        were_open = self._store.resolve([update for update, _ in updates], term)
        return {
            update.entry: row
            for (update, row), was_open in zip(updates, were_open, strict=True)
            if row is not None and was_open
        }

    def _report_skipped(self, records: Sequence[str]) -> None:
        """Emit the verdicts of occurrences that are not sent any more."""
        for raw in records:
            found = parse("0-0", 0, raw)
            if isinstance(found, VerdictRecord) and found.verdict is Verdict.SKIPPED:
                reason = SkipReason(found.reason)
                skipped = events.OccurrenceSkipped(
                    found.label, found.first, found.until, found.count, reason, found.detail
                )
                self._emit(skipped)

    # --- One batch

    def _drop_earlier_terms(self, term: Term) -> None:
        """Drop the claims of earlier terms, after those that have an outcome were confirmed or marked as unsent."""
        self._end(lambda claim: claim.nonce != term.nonce)
        self._resolve_ended()

    def _end(self, ended: Callable[[Claim], bool]) -> None:
        for key, claim in list(self._claims.items()):
            if ended(claim):
                self._ended.append(claim)
                del self._claims[key]

    def _resolve_ended(self) -> None:
        self._store.resolve(_late_updates(self._ended))
        self._ended = []

    def _may_wait(self, operation: Operation) -> bool:
        """True if an operation of a batch may be left for the next one: no claim was begun for it here."""
        return operation.message is not None and not operation.request and operation.key not in self._claims

    def _chunk(self, left: Sequence[Operation], budget: Budget) -> int:
        """Return how many operations to submit next."""
        most, messages = self._sender.rate.in_chunk(budget.left), 0
        for taken, operation in enumerate(left):
            messages += operation.message is not None
            if messages > most:
                return taken
        return len(left)

    def _submit_chunk(
        self, term: Term, operations: Sequence[Operation], unavailable: str, budget: Budget
    ) -> tuple[list[Answer], str]:
        """Claim, publish and confirm. Return the answers, and why nothing more can be sent."""
        sends = any(operation.message is not None for operation in operations)
        reach: Callable[[str], None] = failpoints.reach if sends else lambda _: None
        reach("before claim")
        answers = self._write_claims(term, operations, unavailable)
        keys = [op.key for op, answer in zip(operations, answers, strict=True) if answer is None]
        reach("claimed")
        unavailable = self._sender.send(term, keys, unavailable, budget)
        reach("published")
        self._confirm(term, keys)
        reach("confirmed")
        for key in keys:
            self._claims[key] = machine.resolved(self._claims[key])
        complete = [
            answer or self._claims[op.key].answer or Answer(AnswerKind.ERROR)
            for op, answer in zip(operations, answers, strict=True)
        ]
        return complete, unavailable

    def _write_claims(self, term: Term, operations: Sequence[Operation], unavailable: str) -> list[Answer | None]:
        """Write the claims and run the operations without a message. An open claim has no answer yet."""
        answers: list[Answer | None] = [None] * len(operations)
        writes: dict[int, Operation] = {}
        written: dict[int, Claim] = {}
        for number, operation in enumerate(operations):
            if operation.message is None:
                writes[number] = operation
                continue
            claim = self._claims.get(operation.key)
            if claim is not None:
                answers[number] = claim.answer
            elif unavailable:
                answers[number] = Answer(AnswerKind.UNSENT, unavailable)
                continue
            else:
                claim = machine.new_claim(term, operation)
            if claim.must_be_written:
                writes[number], written[number] = self._store.operation_for(claim), claim
        if not writes:
            return answers
        for claim in written.values():
            # A signal handler may have resolved one that was written before.
            before = self._claims.get(claim.key)
            self._claims[claim.key] = claim if before is None else machine.write_repeated(before)
        found = self._store.write(term, list(writes.values()))
        for number, answer in zip(writes, found, strict=True):
            answers[number] = answer
            if number in written:
                key = written[number].key
                claim = self._claims[key] = machine.write_answered(self._claims[key], answer)
                answers[number] = claim.answer
        return answers

    def _confirm(self, term: Term, keys: Sequence[str]) -> None:
        """Write the resolution of published claims, with retries.

        Raises:
            FencedOff: the term is over, and a claim was to be taken back. The others are resolved.
            StoreError: from :meth:`ClaimStore.resolve`.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_after_delay(self._confirm_for),
            reraise=True,
        )
        claims = [self._claims[key] for key in keys]
        try:
            retrying(self._store.resolve, [*chain(*_updates(claims, in_term=True))], term)
        except FencedOff:
            final, taken_back = _updates(claims)
            retrying(self._store.resolve, final)  # guard: claim-confirm-after-term
            if taken_back:
                raise


def _late_updates(claims: Iterable[Claim]) -> list[machine.Update]:
    """Return what can be written about claims of ended terms: that a message was accepted, or was not sent."""
    updates = (machine.update_for(claim) if claim.accepted else machine.unsent_update(claim) for claim in claims)
    return [update for update in updates if update is not None]


def _updates(claims: Sequence[Claim], *, in_term: bool = False) -> tuple[list[machine.Update], list[machine.Update]]:
    """Return the updates of published claims: those that need no fence, and those that take a claim back.

    ``in_term``: all are written under the fence.
    """
    final, taken_back = [], []
    for claim in claims:
        if claim.state is State.PUBLISHED:
            match machine.resolution(claim):
                case Resolution.CONFIRM | Resolution.RECORD_UNCERTAIN:
                    final.append(machine.update_for(claim, in_term=in_term))
                case Resolution.TAKE_BACK:
                    taken_back.append(machine.update_for(claim))
                case Resolution.KEEP_OPEN:
                    pass
    return final, taken_back
