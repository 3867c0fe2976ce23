"""State machine of one claim. Pure: it decides what is sent and how the claim ends, and does no I/O.

State
    ========== ==========================================================================
    WRITING    the claim is being written for the first time
    REWRITING  the reply to an earlier write was lost, and the claim is being written again
    OPEN       the store has the claim; the message was not sent
    PUBLISHING the message may be on its way
    PUBLISHED  the publish has an outcome, which the store does not have yet
    ANSWERED   nothing is left to do
    ========== ==========================================================================

Resolution
    The outcome of the publish decides what is written (:attr:`Claim.resolution`):

    - accepted: the final row. Not fenced, since no later term can undo a message that was accepted.
    - refused or unsent: the row from before the claim. Fenced. If the term is over, the claim is marked as unsent, and
      the next term takes the claim back.
    - unknown: the verdict ``uncertain``. Under the policy ``republish`` nothing is written: the claim stays open and
      the message is sent again.

    If a claim replaces an open claim, the earlier message may have been accepted. Unless the new message is accepted,
    the outcome is therefore unknown.

An event that does not apply to the claim's state leaves the claim unchanged. A signal handler may resolve a claim while
the main loop works on it; the main loop then goes on with the resolved claim.
"""

from __future__ import annotations

import json
from enum import Enum, auto
from typing import NamedTuple

from ha_beat.dispatch.claims.rows import claimed_row, raw, uncertain_row
from ha_beat.dispatch.protocol import Answer, Operation
from ha_beat.reasons import AnswerKind, PublishOutcome, UncertainPolicy, UncertainReason, Verdict
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow


class ClaimState(Enum):
    """State of a claim."""

    WRITING = auto()
    REWRITING = auto()
    OPEN = auto()
    PUBLISHING = auto()
    PUBLISHED = auto()
    ANSWERED = auto()


class Resolution(Enum):
    """How a published claim is resolved in the store."""

    CONFIRM = auto()
    RECORD_UNCERTAIN = auto()
    TAKE_BACK = auto()
    KEEP_OPEN = auto()


class Claim(NamedTuple):
    """Claim of this process, made under the term of ``nonce``.

    ``json`` is the claim as stored, ``row`` the entry's row, as stored, while it is claimed (empty for a request's
    step, which leaves the row alone). ``replaces_open`` is True if an earlier publish of the same message has an
    unknown outcome.
    """

    operation: Operation
    nonce: str
    json: str
    row: str
    replaces_open: bool = False
    state: ClaimState = ClaimState.WRITING
    outcome: PublishOutcome | None = None
    reason: UncertainReason = UncertainReason.NO_ANSWER
    detail: str = ""
    answer: Answer | None = None

    @property
    def key(self) -> str:
        return self.operation.key

    @property
    def must_be_written(self) -> bool:
        return self.state is ClaimState.WRITING or self.state is ClaimState.REWRITING

    @property
    def accepted(self) -> bool:
        """True if the broker has the message and the store does not know it yet."""
        return self.state is ClaimState.PUBLISHED and self.outcome is PublishOutcome.ACCEPTED

    # --- Events

    def write_repeated(self) -> Claim:
        """Record that the claim is about to be written once more, because its first write was not answered."""
        return self._replace(state=ClaimState.REWRITING) if self.state is ClaimState.WRITING else self

    def write_answered(self, answer: Answer) -> Claim:
        """Record the store's answer to the write. ``mine`` to a first write means a claim of another process."""
        if not self.must_be_written:
            return self
        ours = answer.kind is AnswerKind.MINE and self.state is ClaimState.REWRITING  # guard: claim-tried
        if ours or answer.kind is AnswerKind.DONE:
            return self._replace(state=ClaimState.OPEN)
        return self._replace(state=ClaimState.ANSWERED, answer=answer)

    def publish_begun(self) -> Claim:
        """Record that the message is about to be sent. If an earlier send was interrupted, the outcome is unknown."""
        match self.state:
            case ClaimState.OPEN:
                return self._replace(state=ClaimState.PUBLISHING)
            case ClaimState.PUBLISHING:
                return self.published(PublishOutcome.UNKNOWN)._replace(reason=UncertainReason.INTERRUPTED)
            case _:
                return self

    def published(self, outcome: PublishOutcome, detail: str = "") -> Claim:
        """Record the outcome of the publish."""
        if self.state is not ClaimState.PUBLISHING:
            return self
        return self._replace(state=ClaimState.PUBLISHED, outcome=outcome, detail=detail)

    def publish_abandoned(self, detail: str) -> Claim:
        """Record that the message will not be sent. A claim whose message may be on its way stays unchanged."""
        if not self.must_be_written and self.state is not ClaimState.OPEN:
            return self
        return self._replace(state=ClaimState.PUBLISHED, outcome=PublishOutcome.UNSENT, detail=detail)

    def resolved(self) -> Claim:
        """Record that the store has the resolution of a published claim."""
        if self.state is not ClaimState.PUBLISHED:
            return self
        return self._replace(state=ClaimState.ANSWERED, answer=self._answer())

    # --- Resolution of a published claim

    @property
    def resolution(self) -> Resolution:
        if self.outcome is PublishOutcome.ACCEPTED:
            return Resolution.CONFIRM
        if self.outcome is not PublishOutcome.UNKNOWN and not self.replaces_open:  # guard: claim-maybe-accepted
            return Resolution.TAKE_BACK
        if self.operation.uncertain is UncertainPolicy.REPUBLISH and self.row:
            return Resolution.KEEP_OPEN
        return Resolution.RECORD_UNCERTAIN

    def uncertain_row(self) -> str:
        """Return the row that records the unknown outcome; empty for a request's step."""
        return raw(uncertain_row(self.row, self.reason, self.detail))

    def _answer(self) -> Answer:
        match self.resolution:
            case Resolution.CONFIRM:
                return Answer(AnswerKind.PARTIAL, self.detail) if self.detail else Answer(AnswerKind.DONE)
            case Resolution.KEEP_OPEN:
                return Answer(AnswerKind.AGAIN, self.row)
            case Resolution.RECORD_UNCERTAIN:
                return Answer(AnswerKind.UNCERTAIN, self.uncertain_row() or self.detail)
            case Resolution.TAKE_BACK:
                refused = self.outcome is PublishOutcome.REFUSED
                return Answer(AnswerKind.ERROR if refused else AnswerKind.UNSENT, self.detail)


def new_claim(term: Term, operation: Operation) -> Claim:
    """Return the claim for an operation with a message, which is about to be written."""
    row = claimed_row(operation.row) if operation.row else ""
    # Most rows that are replaced are no claims, and need not be parsed.
    replaced = LedgerRow.parse(operation.expected) if row and Verdict.CLAIMED in operation.expected else None
    content = {
        "entry": operation.entry,
        "by": term.nonce,
        "policy": operation.uncertain,
        "ms": max((json.loads(record).get("ms", 0) for record in operation.records), default=term.epoch),
        "row": row,
        "before": operation.expected if row else "",
        "records": operation.records,
    }
    replaces_open = (
        replaced is not None and replaced.verdict is Verdict.CLAIMED and replaced.task_id == operation.task_id
    )
    return Claim(operation, term.nonce, json.dumps(content, separators=(",", ":")), row, replaces_open)
