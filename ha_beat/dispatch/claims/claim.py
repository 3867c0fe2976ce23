"""State machine of one claim. Pure: it decides what is sent and what is written, and does neither.

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
    The outcome of the publish decides what is written (:func:`resolution`):

    - accepted: the final row. Not fenced, since no later term can undo a message that was accepted;
    - refused or unsent: the row as it was before the claim. Fenced. If the term is over, the claim is marked as
      unsent (:func:`unsent_update`), and the next term takes it back;
    - unknown: the verdict ``uncertain``, or nothing under the policy ``republish``, where the claim stays open and the
      message is sent again.

    A claim that replaces an open claim is unknown unless the message is accepted now: the earlier message may have been
    accepted.

An event that does not apply to the claim's state leaves the claim unchanged. A signal handler may resolve a claim while
the main loop works on it; the main loop then goes on with the resolved claim.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, NamedTuple

from ha_beat.dispatch.protocol import Answer, OpenClaim, Operation
from ha_beat.reasons import AnswerKind, PublishOutcome, SkipReason, UncertainPolicy, UncertainReason, Verdict
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

#: State of a stored claim whose message was certainly not sent.
UNSENT = "unsent"

#: Characters of a detail that are kept in the ledger and the journal.
_MAX_DETAIL = 300

#: Verdict of a row, as stored.
_ENQUEUED, _CLAIMED = (f'"verdict":"{verdict}"' for verdict in (Verdict.ENQUEUED, Verdict.CLAIMED))


class State(Enum):
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
    state: State = State.WRITING
    outcome: PublishOutcome | None = None
    reason: UncertainReason = UncertainReason.NO_ANSWER
    detail: str = ""
    answer: Answer | None = None

    @property
    def key(self) -> str:
        return self.operation.key

    @property
    def must_be_written(self) -> bool:
        return self.state is State.WRITING or self.state is State.REWRITING

    @property
    def accepted(self) -> bool:
        """True if the broker has the message and the store does not know it yet."""
        return self.state is State.PUBLISHED and self.outcome is PublishOutcome.ACCEPTED


@dataclass(frozen=True, slots=True)
class Update:
    """Replacement of one stored claim.

    ``state`` is the claim's new state, empty to remove it. ``row`` replaces the entry's row if that is one of
    ``replaces``; an empty one removes it. ``records`` go to the journal.
    """

    key: str
    json: str
    state: str
    entry: str
    row: str
    replaces: Sequence[str]
    records: Sequence[str]
    #: True if the message was certainly not sent, so that it keeps its entry from nothing.
    unsent: bool = False

    def argv(self) -> list[Any]:
        return [
            *(self.key, self.json, self.state, self.entry, self.row, int(self.unsent)),
            *(len(self.replaces), *self.replaces),
            *(len(self.records), *self.records),
        ]


def new_claim(term: Term, operation: Operation) -> Claim:
    """Return the claim for an operation with a message, which is about to be written."""
    row = _claimed(operation.row) if operation.row else ""
    # Most rows that are replaced are no claims, and need not be parsed.
    replaced = LedgerRow.parse(operation.expected) if row and Verdict.CLAIMED in operation.expected else None
    content = {
        "entry": operation.entry,
        "by": term.nonce,
        "policy": operation.uncertain,
        "ms": _written_ms(operation.records, term),
        "row": row,
        "before": operation.expected if row else "",
        "records": operation.records,
    }
    replaces_open = (
        replaced is not None and replaced.verdict is Verdict.CLAIMED and replaced.task_id == operation.task_id
    )
    return Claim(operation, term.nonce, json.dumps(content, separators=(",", ":")), row, replaces_open)


# --- Events


def write_repeated(claim: Claim) -> Claim:
    """Record that the claim is about to be written once more, because its writing was not answered."""
    return claim._replace(state=State.REWRITING) if claim.state is State.WRITING else claim


def write_answered(claim: Claim, answer: Answer) -> Claim:
    """Record the store's answer to the write. ``mine`` to a first write means a claim of another process."""
    if not claim.must_be_written:
        return claim
    ours = answer.kind is AnswerKind.MINE and claim.state is State.REWRITING  # guard: claim-tried
    if ours or answer.kind is AnswerKind.DONE:
        return claim._replace(state=State.OPEN)
    return claim._replace(state=State.ANSWERED, answer=answer)


def publish_begun(claim: Claim) -> Claim:
    """Record that the message is about to be sent. If an earlier send was interrupted, the outcome is unknown."""
    match claim.state:
        case State.OPEN:
            return claim._replace(state=State.PUBLISHING)
        case State.PUBLISHING:
            return published(claim, PublishOutcome.UNKNOWN)._replace(reason=UncertainReason.INTERRUPTED)
        case _:
            return claim


def published(claim: Claim, outcome: PublishOutcome, detail: str = "") -> Claim:
    """Record the outcome of the publish."""
    if claim.state is not State.PUBLISHING:
        return claim
    return claim._replace(state=State.PUBLISHED, outcome=outcome, detail=detail)


def unsent(claim: Claim, detail: str) -> Claim:
    """Record that the message will not be sent. A claim whose message may be on its way stays unchanged."""
    if not claim.must_be_written and claim.state is not State.OPEN:
        return claim
    return claim._replace(state=State.PUBLISHED, outcome=PublishOutcome.UNSENT, detail=detail)


def resolved(claim: Claim) -> Claim:
    """Record that the store has the resolution of a published claim."""
    if claim.state is not State.PUBLISHED:
        return claim
    return claim._replace(state=State.ANSWERED, answer=_answer_of(claim))


# --- Resolution of a published claim


def resolution(claim: Claim) -> Resolution:
    """Return how a published claim is resolved."""
    if claim.outcome is PublishOutcome.ACCEPTED:
        return Resolution.CONFIRM
    if claim.outcome is not PublishOutcome.UNKNOWN and not claim.replaces_open:  # guard: claim-maybe-accepted
        return Resolution.TAKE_BACK
    if claim.operation.uncertain is UncertainPolicy.REPUBLISH and claim.row:
        return Resolution.KEEP_OPEN
    return Resolution.RECORD_UNCERTAIN


def update_for(claim: Claim, *, in_term: bool = False) -> Update:
    """Return what resolves a published claim that does not stay open.

    ``in_term``: it is written under the fence of the claim's term, so that no newer term has changed the row.
    """
    operation = claim.operation
    replaces = [claim.row] if claim.row else []
    row, records, unsent = operation.expected, operation.records, False
    match resolution(claim):
        case Resolution.CONFIRM:
            row = operation.row
            if not in_term:  # guard: claim-confirm-uncertain-row
                # A newer term may have recorded the claim as uncertain.
                replaces += filter(None, [_raw(uncertain_row(claim.row))])
        case Resolution.RECORD_UNCERTAIN:
            row = _raw(uncertain_row(claim.row, claim.reason, claim.detail))
            records = tuple(uncertain_record(record, claim.reason, claim.detail) for record in records)
        case _:
            records, unsent = (), True
    return Update(claim.key, claim.json, "", operation.entry, row, replaces, records, unsent)


def unsent_update(claim: Claim) -> Update | None:
    """Return what marks the claim of an ended term as unsent, if its message was certainly not sent.

    Only the mark is written, because a newer term may have read the entry's row. That term takes the claim back.
    """
    claim = unsent(claim, "")
    if claim.state is not State.PUBLISHED or resolution(claim) is not Resolution.TAKE_BACK:
        return None
    return Update(claim.key, claim.json, UNSENT, claim.operation.entry, "", (), ())


def _answer_of(claim: Claim) -> Answer:
    match resolution(claim):
        case Resolution.CONFIRM:
            return Answer(AnswerKind.PARTIAL, claim.detail) if claim.detail else Answer(AnswerKind.DONE)
        case Resolution.KEEP_OPEN:
            return Answer(AnswerKind.AGAIN, claim.row)
        case Resolution.RECORD_UNCERTAIN:
            return Answer(
                AnswerKind.UNCERTAIN, _raw(uncertain_row(claim.row, claim.reason, claim.detail)) or claim.detail
            )
        case Resolution.TAKE_BACK if claim.outcome is PublishOutcome.REFUSED:
            return Answer(AnswerKind.ERROR, claim.detail)
        case _:
            return Answer(AnswerKind.UNSENT, claim.detail)


# --- Claims of earlier terms


def parse_claim(key: str, value: str) -> tuple[str, int, OpenClaim]:
    """Return a stored claim: its state, the Unix milliseconds at which it was written, and the claim.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is malformed, or written by newer software.
    """
    state, _, raw = value.partition(" ")
    content = json.loads(raw)
    found = OpenClaim(
        key,
        raw,
        str(content["entry"]),
        str(content["by"]),
        UncertainPolicy(content["policy"]),
        str(content["row"]),
        tuple(str(record) for record in content["records"]),
        before=str(content["before"]),
        unsent=state == UNSENT,
    )
    return state, int(content["ms"]), found


def take_back_updates(claims: Iterable[OpenClaim], rows: Mapping[str, str]) -> list[Update]:
    """Return what takes unsent claims back. ``rows`` are the rows of their entries.

    An occurrence whose row was replaced since by that of a later one is not sent any more, and is recorded as skipped.
    """
    now, updates = dict(rows), []
    # Newest first: what is taken back may restore the row of an earlier one.
    for claim in sorted(claims, key=_revision, reverse=True):
        replaced = bool(claim.row and now.get(claim.entry)) and now[claim.entry] != claim.row
        records = tuple(map(_skipped_record, claim.records)) if replaced else ()  # guard: unsent-row-replaced
        replaces = [claim.row] if claim.row else []
        updates.append(Update(claim.key, claim.json, "", claim.entry, claim.before, replaces, records, unsent=True))
        if claim.row and not replaced:
            now[claim.entry] = claim.before
    return updates


def _revision(claim: OpenClaim) -> int:
    row = LedgerRow.parse(claim.row) if claim.row else None
    return row.rev if row is not None else 0


def uncertain_update(claim: OpenClaim) -> tuple[Update, LedgerRow | None]:
    """Return what records an open claim as uncertain, and the entry's new row, if the claim has one.

    The claim is kept as ``uncertain``, since the process that made it may confirm it later.
    """
    row = uncertain_row(claim.row)
    replaces = [claim.row] if row is not None else []
    records = [uncertain_record(record) for record in claim.records]
    return Update(claim.key, claim.json, "uncertain", claim.entry, _raw(row), replaces, records), row


def uncertain_row(
    claimed: str, reason: UncertainReason = UncertainReason.UNCONFIRMED, detail: str = ""
) -> LedgerRow | None:
    """Return a claimed row with the verdict ``uncertain``; the same in each replica that computes it.

    ``None`` for no row, or an unreadable one.
    """
    row = LedgerRow.parse(claimed) if claimed else None
    if row is None:
        return None
    return replace(row, verdict=Verdict.UNCERTAIN, reason=reason, detail=detail[:_MAX_DETAIL]).with_raw()


def uncertain_record(record: str, reason: UncertainReason = UncertainReason.UNCONFIRMED, detail: str = "") -> str:
    """Return the record of an enqueued occurrence as one of unknown outcome, and any other record unchanged."""
    fields = json.loads(record)
    if fields.get("verdict") == Verdict.ENQUEUED:
        fields["verdict"], fields["why"] = Verdict.UNCERTAIN, reason
        if detail:
            fields["detail"] = detail[:_MAX_DETAIL]
    return json.dumps(fields)


def _skipped_record(record: str) -> str:
    """Return the record of an enqueued occurrence as one that was not sent, and any other record unchanged."""
    fields = json.loads(record)
    if fields.get("verdict") == Verdict.ENQUEUED:
        fields["verdict"], fields["why"] = Verdict.SKIPPED, SkipReason.NOT_PUBLISHED
        fields.pop("id", None)
    return json.dumps(fields)


def _raw(row: LedgerRow | None) -> str:
    return row.raw if row is not None else ""


def _claimed(row: str) -> str:
    """Return an enqueued row as one that is claimed, both as stored.

    Raises:
        ValueError: it has another verdict.
    """
    # In text, because that takes a tenth of the time. A text in the row has no such quotes.
    if _ENQUEUED not in row:
        raise ValueError("the row of a message is not that of an enqueued occurrence")
    return row.replace(_ENQUEUED, _CLAIMED, 1)


def _written_ms(records: Iterable[str], term: Term) -> int:
    return max((json.loads(record).get("ms", 0) for record in records), default=term.epoch)
