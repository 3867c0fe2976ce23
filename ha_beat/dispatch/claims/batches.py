"""Batches of operations, each carried out in chunks: claim, publish, confirm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from ha_beat import failpoints
from ha_beat.budget import Budget, Pace
from ha_beat.dispatch.claims.claim import Claim, ClaimState, new_claim
from ha_beat.dispatch.claims.own_claims import OwnClaims
from ha_beat.dispatch.claims.sender import ClaimSender
from ha_beat.dispatch.claims.store import ClaimStore
from ha_beat.dispatch.claims.updates import resolving_updates
from ha_beat.dispatch.protocol import Answer, FencedOff, Operation
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import AnswerKind
from ha_beat.store.lease import Term


class ClaimBatches:
    """Batches of this replica. The claims of an unanswered batch are kept, so that a retry sends nothing twice."""

    def __init__(self, store: ClaimStore, own: OwnClaims, sender: ClaimSender, confirm_for: float, pace: Pace) -> None:
        """``confirm_for``: seconds for which a confirmation is retried before the batch counts as unanswered."""
        self._store = store
        self._own = own
        self._claims = own.by_key
        self._sender = sender
        self._confirm_for = confirm_for
        self._pace = pace
        #: True if a part of the last batch has answers.
        self._partly_answered = False

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        """Carry out a batch. Raises as :meth:`~ha_beat.dispatch.protocol.Dispatcher.submit`."""
        self._partly_answered = False
        self._own.resolve_ended(term)
        self._sender.begin_batch(term, operations)
        answers: dict[int, Answer] = {}
        # Numbers of the operations that have no answer.
        left, budget = list(range(len(operations))), self._pace.begin()
        try:
            while left:
                if answers and budget.spent:
                    waiting = [number for number in left if self._may_wait(operations[number])]
                    answers |= dict.fromkeys(waiting, Answer(AnswerKind.DEFERRED))
                    left = [number for number in left if number not in answers]
                size = self._chunk_size([operations[number] for number in left], budget)
                chunk, left = left[:size], left[size:]
                found = self._submit_chunk(term, [operations[number] for number in chunk], budget)
                answers |= zip(chunk, found, strict=True)
                self._partly_answered = True
        except (FencedOff, SystemExit, KeyboardInterrupt):
            # Spare the next term the wait until these messages can't be on their way any more.
            with suppress(StoreError):
                self._own.resolve_ended()
            raise
        for operation in operations:
            self._claims.pop(operation.key, None)
        return [answers[number] for number in range(len(operations))]

    def drop_refused(self, operations: Sequence[Operation]) -> bool:
        """Drop a batch that was refused. Return False if a part of it may have been carried out."""
        keys = {operation.key for operation in operations} & self._claims.keys()
        if self._partly_answered or any(self._claims[key].state is not ClaimState.WRITING for key in keys):
            return False
        for key in keys:
            del self._claims[key]
        return True

    def _may_wait(self, operation: Operation) -> bool:
        """True if an operation may be left for the next batch: no claim was begun for it here."""
        return operation.message is not None and not operation.request and operation.key not in self._claims

    def _chunk_size(self, left: Sequence[Operation], budget: Budget) -> int:
        """Return how many operations to submit next."""
        most, messages = self._sender.rate.in_chunk(budget.left), 0
        for taken, operation in enumerate(left):
            messages += operation.message is not None
            if messages > most:
                return taken
        return len(left)

    def _submit_chunk(self, term: Term, operations: Sequence[Operation], budget: Budget) -> list[Answer]:
        sends = any(operation.message is not None for operation in operations)
        reach: Callable[[str], None] = failpoints.reach if sends else lambda _: None
        reach("before claim")
        answers = self._write_claims(term, operations)
        keys = [op.key for op, answer in zip(operations, answers, strict=True) if answer is None]
        reach("claimed")
        self._sender.send(term, keys, budget)
        reach("published")
        self._confirm(term, keys)
        reach("confirmed")
        for key in keys:
            self._claims[key] = self._claims[key].resolved()
        return [
            answer or self._claims[op.key].answer or Answer(AnswerKind.ERROR)
            for op, answer in zip(operations, answers, strict=True)
        ]

    def _write_claims(self, term: Term, operations: Sequence[Operation]) -> list[Answer | None]:
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
            elif self._sender.unavailable:
                answers[number] = Answer(AnswerKind.UNSENT, self._sender.unavailable)
                continue
            else:
                claim = new_claim(term, operation)
            if claim.must_be_written:
                writes[number], written[number] = self._store.operation_for(claim), claim
        if not writes:
            return answers
        for claim in written.values():
            # A signal handler may have resolved one that was written before.
            before = self._claims.get(claim.key)
            self._claims[claim.key] = claim if before is None else before.write_repeated()
        found = self._store.write(term, list(writes.values()))
        for number, answer in zip(writes, found, strict=True):
            answers[number] = answer
            if number in written:
                key = written[number].key
                claim = self._claims[key] = self._claims[key].write_answered(answer)
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
            retrying(self._store.resolve, resolving_updates(claims, in_term=True), term)
        except FencedOff:
            updates = resolving_updates(claims)
            final = [update for update in updates if not update.not_sent]
            retrying(self._store.resolve, final)  # guard: claim-confirm-after-term
            if len(final) < len(updates):
                raise
