"""Dispatch where the broker is not the lease's Redis: claim, publish, confirm.

The claim is written, under the fence, right before the message is sent; the confirmation right after the broker has
accepted it. A claim that nobody confirms is an occurrence of unknown outcome, and is never silently sent again.

What becomes of a claim:

- accepted by the broker: the maker removes it and writes ``enqueued``, under whatever term, however late;
- certainly not sent: the maker takes it back, under the fence, and the entry stands where it stood;
- unknown to its maker (no answer, a nack, a cut): ``uncertain`` at once, or kept open and sent again (``republish``);
- not sent yet when the process is told to stop: taken back as well, before the lease is given up;
- left behind: a newer term settles it as ``uncertain``, once it can't be under way any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from celery.beat import ScheduleEntry
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from ha_beat import failpoints
from ha_beat.dispatch.batch import BatchScript
from ha_beat.dispatch.broker_adapters import Sent
from ha_beat.dispatch.lease_marker import StoreMark
from ha_beat.dispatch.protocol import Answer, FencedOff, OpenClaim, Operation
from ha_beat.dispatch.publisher import DeferredPublish
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.reasons import AnswerKind, PublishOutcome, UncertainPolicy, UncertainReason, Verdict
from ha_beat.store.connections import Link
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason
from ha_beat.store.ledger import Ledger, LedgerRow
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Script, text

if TYPE_CHECKING:
    import redis

#: So many occurrences are claimed before the first of them is sent: few enough that a claim is young when it is.
_AT_A_TIME = 20

#: Characters of a detail that are kept in the ledger and the journal.
_MAX_DETAIL = 300

#: For so long a claim that was settled by a newer term waits for word from its maker.
_KEEP_UNCERTAIN = timedelta(days=1)


class MessageSender(Protocol):
    """What sends the messages."""

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[DeferredPublish, ...]: ...

    def ready(self) -> None: ...

    def send(self, messages: Sequence[DeferredPublish]) -> Sent: ...


@dataclass(slots=True)
class _Claimed:
    """How far this process has come with a claim of its own."""

    operation: Operation
    nonce: str
    json: str
    #: The row as claimed; none where the operation leaves the row alone.
    row: LedgerRow | None
    #: Whether it takes the place of an open claim: whatever happens now, that sending may have been accepted.
    sent_before: bool
    attempted: bool = False
    written: bool = False
    #: Whether its message may be under way.
    sending: bool = False
    outcome: PublishOutcome | None = None
    reason: UncertainReason = UncertainReason.NO_ANSWER
    detail: str = ""
    answer: Answer | None = None

    @property
    def key(self) -> str:
        return _key(self.operation)

    @property
    def raw(self) -> str:
        return self.row.raw if self.row is not None else ""

    @property
    def unknown(self) -> bool:
        """Nobody knows about this sending, or about the one before it."""
        return self.outcome is PublishOutcome.UNKNOWN or (self.sent_before and not self.accepted)

    @property
    def accepted(self) -> bool:
        return self.outcome is PublishOutcome.ACCEPTED

    @property
    def uncertain(self) -> LedgerRow | None:
        """The row if the outcome is unknown."""
        return uncertain_row(self.row, self.reason, self.detail) if self.row is not None else None

    @property
    def stays_open(self) -> bool:
        """It is to be sent again."""
        return self.unknown and self.operation.uncertain is UncertainPolicy.REPUBLISH and self.row is not None


def uncertain_row(
    claimed: LedgerRow, reason: UncertainReason = UncertainReason.UNCONFIRMED, detail: str = ""
) -> LedgerRow:
    """Return the row of a claimed occurrence whose outcome is unknown; the same for each replica that writes it."""
    row = replace(claimed, verdict=Verdict.UNCERTAIN, reason=reason, detail=detail[:_MAX_DETAIL])
    return replace(row, raw=row.encoded())


def claimed_row(final: LedgerRow) -> LedgerRow:
    row = replace(final, verdict=Verdict.CLAIMED)
    return replace(row, raw=row.encoded())


class ClaimDispatcher:
    """Enqueues through any broker. It remembers how far a batch has come, so that a retry sends nothing twice."""

    def __init__(
        self,
        publisher: MessageSender,
        link: Link,
        keys: Keys,
        journal_size: int,
        confirm_for: float,
        trusted: Callable[[Term], bool],
        mark: StoreMark | None = None,
    ) -> None:
        """``confirm_for``: for so many seconds a confirmation is tried before the batch counts as unanswered."""
        self._publisher = publisher
        self._link = link
        self._keys = keys
        self._journal_size = journal_size
        self._confirm_for = confirm_for
        self._trusted = trusted
        self._mark = mark
        self._batch = BatchScript(keys, journal_size)
        self.ledger = Ledger(link.client, keys)
        self._settle_script = Script("settle", although_full=True)
        #: Of the batches that are not answered yet, by key.
        self._known: dict[str, _Claimed] = {}
        #: Accepted under terms that are over, and not confirmed yet.
        self._owed: list[_Claimed] = []

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[DeferredPublish, ...]:
        return self._publisher.prepare(entry, args, kwargs, options)

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        self._turn_to(term)
        trouble = self._trouble(term, operations)
        answers: list[Answer] = []
        for start in range(0, len(operations), _AT_A_TIME):
            some, trouble = self._submit(term, operations[start : start + _AT_A_TIME], trouble)
            answers += some
        for operation in operations:
            self._known.pop(_key(operation), None)
        return answers

    def settle_up(self) -> None:
        """Confirm what the broker has accepted and Redis could not be told of. Any term may be in force.

        Raises:
            StoreUnavailable: Redis can't be told now either.
        """
        accepted = [known for known in self._known.values() if known.accepted and known.answer is None]
        owed = [*self._owed, *accepted]
        if owed:
            self._settle(["", ""], [_verdict_line(known) for known in owed])
        self._owed = []
        for known in accepted:
            known.answer = Answer(AnswerKind.DONE)

    def let_go(self, term: Term, client: redis.Redis) -> None:
        """The process ends, perhaps in the middle of a batch: settle what is known, by another connection.

        What was not sent yet is taken back, so that the next leader sends it. To be called while the term still holds
        the lease. May run inside a signal handler that has interrupted any method of this class. Never raises.
        """
        claims = [known for known in list(self._known.values()) if known.attempted and known.answer is None]
        for known in claims:
            if not known.outcome and not known.sending:
                known.outcome, known.detail = PublishOutcome.UNSENT, "this replica was stopped"
        known_ones = [known for known in claims if known.outcome and known.nonce == term.nonce]
        told, taken_back = _sorted_out(known_ones)
        with suppress(StoreError, FencedOff):
            if told:
                self._settle(["", ""], [_verdict_line(known) for known in told], client)
            if taken_back:
                self._settle([term.epoch, term.nonce], [_undo_line(known) for known in taken_back], client)

    def _turn_to(self, term: Term) -> None:
        """Of what an earlier term has left, only what the broker has accepted can still be told."""
        for key, known in list(self._known.items()):
            if known.nonce != term.nonce:
                del self._known[key]
                if known.accepted and known.answer is None:
                    self._owed.append(known)
        if self._owed:
            self.settle_up()

    # --- One batch

    def _trouble(self, term: Term, operations: Sequence[Operation]) -> str:
        """Why nothing can be sent now; empty where the broker answers, or nothing is to be sent."""
        known = self._known
        if all(op.message is None or (_key(op) in known and known[_key(op)].outcome) for op in operations):
            return ""
        try:
            self._publisher.ready()
            if self._mark is not None:
                self._mark.require(term)
        except StoreUnavailable as exc:
            return str(exc)
        return ""

    def _submit(self, term: Term, operations: Sequence[Operation], trouble: str) -> tuple[list[Answer], str]:
        some = any(operation.message is not None for operation in operations)
        if some:
            failpoints.reach("before claim")
        answers = self._claim(term, operations, trouble)
        open_ones = [self._known[_key(op)] for op, answer in zip(operations, answers, strict=True) if answer is None]
        if some:
            failpoints.reach("claimed")
        for known in open_ones:
            trouble = self._send(term, known, trouble)
        if some:
            failpoints.reach("published")
        self._settle_own(term, open_ones)
        if some:
            failpoints.reach("confirmed")
        for known in open_ones:
            known.answer = _answer(known)
        return [
            answer if answer is not None else self._known[_key(op)].answer or Answer(AnswerKind.ERROR)
            for op, answer in zip(operations, answers, strict=True)
        ], trouble

    def _claim(self, term: Term, operations: Sequence[Operation], trouble: str) -> list[Answer | None]:
        """Write the claims, and finish what needs no message; no answer where a claim is open."""
        answers: list[Answer | None] = [None] * len(operations)
        numbers, claims = [], []
        for number, operation in enumerate(operations):
            if operation.message is None:
                numbers.append(number)
                claims.append(operation)
                continue
            known = self._known.get(_key(operation))
            if known is None and trouble:
                answers[number] = Answer(AnswerKind.UNSENT, trouble)
                continue
            if known is None:
                known = self._known[_key(operation)] = _new_claim(term, operation)
            elif known.answer is not None or known.written:
                answers[number] = known.answer
                continue
            record = ("HSET", self._keys.claims, known.key, f"open {known.json}")
            numbers.append(number)
            claims.append(replace(operation, row=known.raw, records=(), message=(record,)))
        if claims:
            tried = {key for key, known in self._known.items() if known.attempted}
            for claim in claims:
                if claim.message is not None:
                    self._known[_key(claim)].attempted = True
            found = self._batch.run(self._link.client(), term, claims)
            for number, answer in zip(numbers, found, strict=True):
                operation = operations[number]
                answers[number] = answer
                if operation.message is not None:
                    answers[number] = self._claimed(operation, answer, tried=_key(operation) in tried)
        return answers

    def _claimed(self, operation: Operation, answer: Answer, *, tried: bool) -> Answer | None:
        """Whether the claim is there, and ours to work on: one that we never tried to write is another's."""
        known = self._known[_key(operation)]
        if answer.kind is AnswerKind.DONE or (
            answer.kind is AnswerKind.MINE and tried  # guard: claim-tried
        ):
            known.written = True
            return None
        known.answer = answer
        return answer

    def _send(self, term: Term, known: _Claimed, trouble: str) -> str:
        """Send what was not sent yet; returns why nothing more should be."""
        if known.outcome:
            return trouble
        if known.sending:
            known.outcome, known.reason = PublishOutcome.UNKNOWN, UncertainReason.INTERRUPTED
        elif trouble:
            known.outcome, known.detail = PublishOutcome.UNSENT, trouble
        elif not self._trusted(term):  # guard: claim-send-trusted
            # Another may lead by now, and settle what is claimed: nothing more goes out under this term.
            known.outcome, known.detail = PublishOutcome.UNSENT, "the term ended before it was sent"
        else:
            failpoints.reach("before publish")
            known.sending = True
            try:
                sent = self._publisher.send(known.operation.message or ())
            except StoreUnavailable as exc:
                known.outcome, known.detail = PublishOutcome.UNSENT, str(exc)
                return known.detail
            known.outcome, known.detail = sent.outcome, sent.detail
            if sent.broken:
                return known.detail
        return trouble

    def _settle_own(self, term: Term, claims: Sequence[_Claimed]) -> None:
        """Write what became of the claims, for as long as it takes to get the word through, within reason."""
        told, taken_back = _sorted_out(claims)
        if told:
            self._insist(["", ""], [_verdict_line(known) for known in told])
        if taken_back:
            self._insist([term.epoch, term.nonce], [_undo_line(known) for known in taken_back])

    def _insist(self, fence: list[Any], lines: Sequence[list[Any]]) -> None:
        for attempt in Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_after_delay(self._confirm_for),
            reraise=True,
        ):
            with attempt:
                self._settle(fence, lines)

    def _settle(self, fence: list[Any], lines: Sequence[list[Any]], client: redis.Redis | None = None) -> list[bool]:
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.claims]
        argv = [*fence, self._journal_size, len(lines), *(part for line in lines for part in line)]
        answer, *rest = self._settle_script(client or self._link.client(), keys, argv)
        if text(answer) == "fenced":
            raise FencedOff(fence_reason(text(rest[0])))
        return [bool(int(part)) for part in rest]

    # --- What others left

    def open_claims(self, term: Term) -> list[OpenClaim]:
        """The claims that nobody has settled; those settled long ago are removed."""
        with mapped_redis_errors():
            client = self._link.client()
            found: Mapping[Any, Any] = client.hgetall(self._keys.claims)
            claims, stale = [], []
            for field, value in found.items():
                try:
                    state, written_ms, claim = _found(text(field), text(value))
                except (ValueError, KeyError, TypeError, RecursionError):
                    # Of another hand, or of newer software: it must not keep this leader from its work.
                    continue
                if state == "open":
                    claims.append(claim)
                elif term.epoch - written_ms > _KEEP_UNCERTAIN / timedelta(milliseconds=1):
                    stale.append(field)
            if stale:
                client.hdel(self._keys.claims, *stale)
        return claims

    def give_up(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        """Settle claims that nobody works on any more."""
        lines: list[list[Any]] = []
        rows: list[LedgerRow | None] = []
        for claim in claims:
            claimed = LedgerRow.parse(claim.row) if claim.row else None
            row = uncertain_row(claimed) if claimed is not None else None
            rows.append(row)
            replaces = [claim.row] if row is not None else []
            records = [as_uncertain(record) for record in claim.records]
            raw = row.raw if row is not None else ""
            lines.append(_line(claim.key, claim.json, "uncertain", claim.entry, raw, replaces, records))
        settled = self._settle([term.epoch, term.nonce], lines) if lines else []
        return {
            claim.entry: row
            for claim, row, was_open in zip(claims, rows, settled, strict=True)
            if row is not None and was_open
        }


def _found(key: str, value: str) -> tuple[str, int, OpenClaim]:
    """A claim as it stands: its state, when it was written, and the claim."""
    state, _, raw = value.partition(" ")
    claim = json.loads(raw)
    records = tuple(str(record) for record in claim["records"])
    found = OpenClaim(
        key, raw, str(claim["entry"]), str(claim["by"]), UncertainPolicy(claim["policy"]), str(claim["row"]), records
    )
    return state, int(claim["ms"]), found


def _sorted_out(claims: Sequence[_Claimed]) -> tuple[list[_Claimed], list[_Claimed]]:
    """Those that get a verdict, and those that are taken back. The others stay open."""
    told = [known for known in claims if known.accepted or (known.unknown and not known.stays_open)]
    taken_back = [
        known
        for known in claims
        if known.outcome in {PublishOutcome.REFUSED, PublishOutcome.UNSENT}
        and not known.unknown  # guard: claim-maybe-accepted
    ]
    return told, taken_back


def _key(operation: Operation) -> str:
    """The claim's field. A request's steps have fields of their own: a backfill has the occurrence's task id."""
    return f"{operation.request}:{operation.step}" if operation.request else operation.task_id


def _new_claim(term: Term, operation: Operation) -> _Claimed:
    final = LedgerRow.parse(operation.row) if operation.row else None
    expected = LedgerRow.parse(operation.expected) if operation.expected and final is not None else None
    row = claimed_row(final) if final is not None else None
    claim = {
        "entry": operation.entry,
        "by": term.nonce,
        "policy": operation.uncertain,
        "ms": _written_ms(operation.records, term),
        "row": row.raw if row is not None else "",
        "records": operation.records,
    }
    sent_before = expected is not None and expected.verdict is Verdict.CLAIMED and expected.task_id == operation.task_id
    return _Claimed(operation, term.nonce, json.dumps(claim, separators=(",", ":")), row, sent_before)


def _written_ms(records: Iterable[str], term: Term) -> int:
    return max((json.loads(record).get("ms", 0) for record in records), default=term.epoch)


def _answer(known: _Claimed) -> Answer:
    if known.stays_open:
        return Answer(AnswerKind.AGAIN, known.raw)
    if known.unknown:
        return Answer(AnswerKind.UNCERTAIN, known.uncertain.raw if known.uncertain else known.detail)
    match known.outcome:
        case PublishOutcome.ACCEPTED:
            return Answer(AnswerKind.PARTIAL, known.detail) if known.detail else Answer(AnswerKind.DONE)
        case PublishOutcome.REFUSED:
            return Answer(AnswerKind.ERROR, known.detail)
        case _:
            return Answer(AnswerKind.UNSENT, known.detail)


def _verdict_line(known: _Claimed) -> list[Any]:
    """What is known for certain, or that nothing is."""
    operation = known.operation
    if known.accepted:
        # A newer term may have settled it as uncertain meanwhile.
        replaces = [known.raw, uncertain_row(known.row).raw] if known.row is not None else []
        return _line(known.key, known.json, "", operation.entry, operation.row, replaces, operation.records)
    row = known.uncertain.raw if known.uncertain is not None else ""
    replaces = [known.raw] if known.row is not None else []
    records = [as_uncertain(record, known.reason, known.detail) for record in operation.records]
    return _line(known.key, known.json, "", operation.entry, row, replaces, records)


def _undo_line(known: _Claimed) -> list[Any]:
    replaces = [known.raw] if known.row is not None else []
    return _line(known.key, known.json, "", known.operation.entry, known.operation.expected, replaces, ())


def _line(
    key: str, claim: str, state: str, entry: str, row: str, replaces: Sequence[str], records: Sequence[str]
) -> list[Any]:
    return [key, claim, state, entry, row, len(replaces), *replaces, len(records), *records]


def as_uncertain(record: str, reason: UncertainReason = UncertainReason.UNCONFIRMED, detail: str = "") -> str:
    """Return a record of an enqueued occurrence as one of unknown outcome, and any other record unchanged."""
    fields = json.loads(record)
    if fields.get("verdict") == "enqueued":
        fields["verdict"], fields["why"] = "uncertain", reason
        if detail:
            fields["detail"] = detail[:_MAX_DETAIL]
    return json.dumps(fields)
