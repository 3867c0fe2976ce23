"""Dispatch where the broker is not the lease's Redis: claim, publish, confirm.

The claim is written, under the fence, right before the message is sent; the confirmation right after the broker has
accepted it. A claim that nobody confirms is an occurrence of unknown outcome, and is never silently sent again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from celery.beat import ScheduleEntry
from redis.exceptions import RedisError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from ha_beat import failpoints
from ha_beat.dispatch.batch_script import BatchScript
from ha_beat.dispatch.publisher import DeferredPublish, Publisher
from ha_beat.dispatch.types import Answer, FencedOff, OpenClaim, Operation
from ha_beat.errors import StoreUnavailable
from ha_beat.lease import Keys, Term
from ha_beat.ledger import Ledger, LedgerRow
from ha_beat.redis_links import Link
from ha_beat.redis_scripts import Script, text

#: So many occurrences are claimed before the first of them is sent: few enough that a claim is young when it is.
_AT_A_TIME = 20

#: The reason in the ledger of an occurrence of unknown outcome.
UNKNOWN = "the broker's answer is unknown"


@dataclass(slots=True)
class _Claimed:
    """How far this process has come with a claim of its own."""

    json: str
    task_id: str
    #: The row as claimed; none where the operation leaves the row alone.
    row: LedgerRow | None
    outcome: Literal["", "accepted", "refused", "unknown"] = ""
    why: str = ""

    @property
    def raw(self) -> str:
        return self.row.raw if self.row is not None else ""

    @property
    def uncertain_raw(self) -> str:
        return uncertain_row(self.row).raw if self.row is not None else ""


def uncertain_row(claimed: LedgerRow) -> LedgerRow:
    """The row of a claimed occurrence whose outcome nobody knows; the same whoever writes it."""
    row = replace(claimed, verdict="uncertain", reason=UNKNOWN)
    return replace(row, raw=row.encoded())


def claimed_row(final: LedgerRow) -> LedgerRow:
    row = replace(final, verdict="claimed")
    return replace(row, raw=row.encoded())


class ClaimDispatcher:
    """Enqueues through any broker. It remembers how far a batch has come, so that a retry sends nothing twice."""

    def __init__(
        self,
        publisher: Publisher,
        link: Link,
        keys: Keys,
        journal_size: int,
        confirm_for: float,
        trusted: Callable[[Term], bool],
    ) -> None:
        self._publisher = publisher
        self._link = link
        self._keys = keys
        self._journal_size = journal_size
        self._confirm_for = confirm_for
        self._trusted = trusted
        self._batch = BatchScript(keys, journal_size)
        self.ledger = Ledger(link.client, keys)
        self._settle_script = Script("settle")
        self._known: dict[str, _Claimed] = {}

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[DeferredPublish, ...]:
        return self._publisher.prepare(entry, args, kwargs, options)

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        answers: list[Answer] = []
        self._publisher.ready()
        for start in range(0, len(operations), _AT_A_TIME):
            answers += self._submit(term, operations[start : start + _AT_A_TIME])
        self._known.clear()
        return answers

    # --- One batch

    def _submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        failpoints.reach("before claim")
        answers = self._claim(term, operations)
        failpoints.reach("claimed")
        claimed = [
            (number, operation)
            for number, (operation, answer) in enumerate(zip(operations, answers, strict=True))
            if operation.message is not None and answer.kind in {"done", "mine"}
        ]
        for _, operation in claimed:
            self._send(term, operation)
        failpoints.reach("published")
        for number, operation in claimed:
            answers[number] = self._outcome(operation)
        self._confirm([operation for _, operation in claimed])
        failpoints.reach("confirmed")
        return answers

    def _claim(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        """Write the claims; what needs no message is finished by this."""
        claims = []
        for operation in operations:
            if operation.message is None:
                claims.append(operation)
                continue
            known = self._known.get(operation.task_id)
            if known is None:
                known = self._known[operation.task_id] = self._new_claim(term, operation)
            record = ("HSET", self._keys.claims, known.task_id, f"open {known.json}")
            claims.append(replace(operation, row=known.raw, records=operation.records[:-1], message=(record,)))
        return self._batch.run(self._link.client(), term, claims)

    def _new_claim(self, term: Term, operation: Operation) -> _Claimed:
        final = LedgerRow.parse(operation.row) if operation.row else None
        row = claimed_row(final) if final is not None else None
        claim = {
            "entry": operation.entry,
            "by": term.nonce,
            "policy": operation.uncertain,
            "row": row.raw if row is not None else "",
            "record": operation.records[-1] if operation.records else "",
        }
        return _Claimed(json.dumps(claim, separators=(",", ":")), operation.task_id, row)

    def _send(self, term: Term, operation: Operation) -> None:
        known = self._known[operation.task_id]
        if known.outcome in {"accepted", "refused"} or (known.outcome == "unknown" and operation.uncertain == "skip"):
            return
        if not self._trusted(term):
            # Another may lead by now, and settle what is claimed: nothing more goes out under this term.
            known.outcome, known.why = known.outcome or "refused", "the term ended before it was sent"
            return
        failpoints.reach("before publish")
        try:
            known.outcome, known.why = self._publisher.send(operation.message or ())
        except StoreUnavailable as exc:
            known.outcome, known.why = known.outcome or "refused", str(exc)

    def _outcome(self, operation: Operation) -> Answer:
        known = self._known[operation.task_id]
        if known.outcome == "accepted":
            return Answer("done")
        if known.outcome == "refused":
            return Answer("error", known.why)
        if operation.uncertain == "skip":
            return Answer("uncertain", known.uncertain_raw)
        return Answer("again", known.raw)

    def _confirm(self, operations: Sequence[Operation]) -> None:
        """Write what became of the claims, for as long as it takes to get the word through, within reason."""
        lines: list[Any] = []
        count = 0
        for operation in operations:
            known = self._known[operation.task_id]
            if known.outcome == "unknown" and operation.uncertain == "republish":
                continue
            count += 1
            lines += self._line(operation, known)
        if not count:
            return
        for attempt in Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_after_delay(self._confirm_for),
            reraise=True,
        ):
            with attempt:
                self._settle(["", "", self._journal_size, count, *lines])

    def _line(self, operation: Operation, known: _Claimed) -> list[Any]:
        records: tuple[str, ...]
        match known.outcome:
            case "accepted":
                state, row, records = "", operation.row, operation.records
                replaces = [known.raw, known.uncertain_raw]
            case "refused":
                state, row, records, replaces = "", operation.expected, (), [known.raw]
            case _:
                state, row, replaces = "uncertain", known.uncertain_raw, [known.raw]
                records = tuple(as_uncertain(record) for record in operation.records)
        if known.row is None:
            replaces = []
        return [known.task_id, known.json, state, operation.entry, row, len(replaces), *replaces, _one(records)]

    def _settle(self, argv: list[Any]) -> list[bool]:
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.claims]
        answer, *rest = self._settle_script(self._link.client(), keys, argv)
        if text(answer) == "fenced":
            raise FencedOff(text(rest[0]))
        return [bool(int(part)) for part in rest]

    # --- What others left

    def open_claims(self, term: Term) -> list[OpenClaim]:
        """The claims of other terms that nobody has confirmed."""
        try:
            found: Mapping[Any, Any] = self._link.client().hgetall(self._keys.claims)
        except (RedisError, OSError) as exc:
            raise StoreUnavailable(str(exc)) from exc
        claims = []
        for task_id, value in found.items():
            state, _, raw = text(value).partition(" ")
            if state != "open":
                continue
            claim = json.loads(raw)
            if claim["by"] != term.nonce:
                claims.append(
                    OpenClaim(
                        text(task_id), raw, claim["entry"], claim["by"], claim["policy"], claim["row"], claim["record"]
                    )
                )
        return claims

    def give_up(self, term: Term, claims: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        """Settle others' claims. Only a newer term may, and only once they can't be under way any more."""
        lines: list[Any] = []
        rows: dict[str, LedgerRow] = {}
        for claim in claims:
            claimed = LedgerRow.parse(claim.row) if claim.row else None
            replaces = []
            raw = ""
            if claimed is not None:
                rows[claim.entry] = uncertain_row(claimed)
                raw, replaces = rows[claim.entry].raw, [claim.row]
            record = as_uncertain(claim.record) if claim.record else ""
            lines += [claim.task_id, claim.json, "uncertain", claim.entry, raw, len(replaces), *replaces, record]
        if lines:
            self._settle([term.epoch, term.nonce, self._journal_size, len(claims), *lines])
        return rows


def as_uncertain(record: str) -> str:
    fields = json.loads(record)
    if fields.get("verdict") == "enqueued":
        fields["verdict"] = "uncertain"
        fields["why"] = UNKNOWN
    return json.dumps(fields)


def _one(records: Sequence[str]) -> str:
    """The verdict's own record; ranges passed over before it were written by the claim."""
    return records[-1] if records else ""
