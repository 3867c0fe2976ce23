"""Ledger rows and journal records for an occurrence, and the operations that write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

from ha_beat.clock import to_micros, to_ms
from ha_beat.dispatch import Operation, PreparedMessage
from ha_beat.headers import header_of
from ha_beat.leader.entry import EntryState
from ha_beat.reasons import SkipReason, Verdict
from ha_beat.schedule.misfire import Decision, Skipped
from ha_beat.schedule.occurrence import FOREVER, Occurrence
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

#: Milliseconds between the build of a batch and its submission that its records need not show.
_PROMPT_MS = 100

#: Placeholder for a time in ms. No text in JSON contains it.
OPEN_TIME = "\0" * 13

#: Builder of a message from its header and its task id.
Build = Callable[[Mapping[str, Any], str], PreparedMessage]


@dataclass(frozen=True, slots=True)
class EntryOperation:
    """Operation with its entry, the row that it writes and the decision that it records."""

    state: EntryState
    operation: Operation
    row: LedgerRow
    decision: Decision | None = None
    #: True if the entry must be planned again, although nothing was due.
    replan: bool = False

    def after(self, raw: str) -> EntryOperation:
        """Return this operation for an entry whose row was replaced by ``raw``."""
        row = replace(self.row, rev=self.row.rev + 1).with_raw()
        new = row.raw if self.operation.row else ""
        return replace(self, operation=replace(self.operation, expected=raw, row=new), row=row, replan=True)

    @property
    def sends(self) -> bool:
        """True if the operation sends a message."""
        return self.decision is not None and self.decision.send is not None

    def operation_at(self, ms: int) -> Operation:
        """Return the operation to submit at this time in ms. Its records show the time if it was built much earlier."""
        if ms - self.row.dispatched_ms < _PROMPT_MS:
            return self.operation
        records = tuple(json.dumps({**json.loads(record), "ms": ms}) for record in self.operation.records)
        return replace(self.operation, records=records)

    def with_open_time(self) -> EntryOperation:
        """Return a copy with :data:`OPEN_TIME` for the time in its row and its records."""
        ms = self.row.dispatched_ms
        # A text of the project cannot contain these fields, because its quotes are escaped.
        raw = self.row.raw.replace(f'"ms":{ms},', f'"ms":{OPEN_TIME},', 1)
        records = tuple(
            record.replace(f'"ms": {ms}, "epoch"', f'"ms": {OPEN_TIME}, "epoch"', 1)
            for record in self.operation.records
        )
        operation = replace(self.operation, row=raw, records=records)
        return replace(self, operation=operation, row=replace(self.row, raw=raw))

    def set_time(self, ms: int, packed: Sequence[bytes]) -> None:
        """Set the open time. ``packed`` are the parts of the packed operation, with the time between them.

        Nothing else may refer to the operation yet: it is changed, because a copy would take longer than the rest.
        """
        text, operation = str(ms), self.operation
        raw = self.row.raw.replace(OPEN_TIME, text)
        # A list is quicker than a generator here.
        records = tuple([record.replace(OPEN_TIME, text) for record in operation.records])
        _set(self.row, dispatched_ms=ms, raw=raw)
        _set(operation, row=raw, records=records, packed=text.encode().join(packed) if packed else b"")


def _set(target: object, **values: Any) -> None:
    """Set fields of a frozen object."""
    for name, value in values.items():
        object.__setattr__(target, name, value)


@dataclass(frozen=True, slots=True)
class LedgerWriter:
    """Builder of rows and records under one term, at one time."""

    term: Term
    now: datetime
    #: Time of the rows and records, in ms since the Unix epoch.
    ms: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ms", to_ms(self.now))

    def row(
        self,
        state: EntryState,
        position: datetime,
        verdict: Verdict,
        *,
        scheduled_at: datetime | None = None,
        skipped: Skipped | None = None,
        task_id: str = "",
        in_doubt_until: datetime | None = None,
    ) -> LedgerRow:
        """Return the row that follows the entry's row."""
        before = state.row
        again = before is not None and before.task_id == task_id and bool(task_id)
        runs = state.runs + (verdict is Verdict.ENQUEUED and not again)
        row = LedgerRow(
            base=position,
            verdict=verdict,
            scheduled_at=scheduled_at or (before.scheduled_at if before else None),
            following=None if state.entry.once and runs else following(state, position),
            owed=state.owed if state.owed is not None and state.owed > position else None,
            in_doubt_until=in_doubt_until,
            rev=(before.rev if before else 0) + 1,
            dispatched_ms=self.ms,
            epoch=self.term.epoch,
            nonce=self.term.nonce,
            run_count=runs,
            reason=skipped.reason if skipped else "",
            detail=skipped.detail if skipped else "",
            task_id=task_id,
            signature=state.entry.signature,
        )
        return row.with_raw()

    def _resent(self, row: LedgerRow) -> LedgerRow:
        """Return the row of a claimed occurrence that is sent again.

        It keeps the fields of the claimed row, because the schedule may have been edited since.
        """
        epoch, nonce = self.term.epoch, self.term.nonce
        sent = replace(row, verdict=Verdict.ENQUEUED, rev=row.rev + 1, dispatched_ms=self.ms, epoch=epoch, nonce=nonce)
        return sent.with_raw()

    def arm(self, state: EntryState, *, in_doubt_until: datetime | None = None) -> EntryOperation:
        """Record the entry's position. Leaders owe what is due after it, and after ``in_doubt_until``."""
        row = self.row(state, state.position, Verdict.ARMED, in_doubt_until=in_doubt_until)
        return EntryOperation(state, Operation(state.id, state.expected, row.raw), row)

    def mark_absent(self, state: EntryState) -> EntryOperation:
        """Record that the entry was deleted or disabled: it is not due until it is armed again.

        If an instant was due before, record it as skipped.
        """
        row, before = self.row(state, state.position, Verdict.ABSENT), state.row
        due = before.owed or before.following if before is not None else None
        if due is None or not state.position < due <= self.now:  # guard: absence-drops-recorded
            return EntryOperation(state, Operation(state.id, state.expected, row.raw), row)
        # It is unknown how many more instants were due.
        skipped = state.in_doubt(Skipped(due, self.now + timedelta(microseconds=1), -1, SkipReason.REMOVED))
        operation = Operation(state.id, state.expected, row.raw, (self.skip_record(state, skipped, state.position),))
        return EntryOperation(state, operation, row, Decision(None, state.position, skipped))

    def delete(self, state: EntryState, row: LedgerRow) -> EntryOperation:
        """Delete the row of an entry that has been absent for long."""
        return EntryOperation(state, Operation(state.id, state.expected, ""), row)

    def skip(
        self, state: EntryState, skipped: Skipped, position: datetime, *, last: datetime | None = None
    ) -> EntryOperation:
        """Record skipped instants. ``last`` is the last one, if it is not the position."""
        skipped = state.in_doubt(skipped)
        row = self.row(state, position, Verdict.SKIPPED, scheduled_at=last or position, skipped=skipped)
        operation = Operation(state.id, state.expected, row.raw, (self.skip_record(state, skipped, position),))
        return EntryOperation(state, operation, row, Decision(None, position, skipped))

    def enqueue(
        self, state: EntryState, decision: Decision, cluster: str, build: Build, earlier: Sequence[str] = ()
    ) -> EntryOperation:
        """Enqueue the occurrence that a decision sends. ``build`` builds its message.

        ``earlier`` are the records that are written again with an occurrence that is sent again.
        """
        entry, at = state.entry, cast("datetime", decision.send)
        occurrence = Occurrence(entry.id, at)
        task_id = occurrence.task_id(cluster)
        if state.resend and state.row is not None:
            row = self._resent(state.row)
        else:
            row = self.row(state, decision.position, Verdict.ENQUEUED, scheduled_at=at, task_id=task_id)
        header = header_of(
            cluster,
            entry.id,
            occurrence.instant,
            epoch=self.term.epoch,
            run_count=row.run_count,
            busy=task_id if entry.busy_for else "",
        )
        message = build(header, task_id)
        records = [*earlier]
        if decision.skipped is not None and not state.resend:
            records.append(self.skip_record(state, decision.skipped))
        records.append(self.enqueued_record(state, at, task_id))
        operation = Operation(
            entry.id,
            state.expected,
            row.raw,
            tuple(records),
            message,
            task_id=task_id,
            uncertain=entry.uncertain,
            scheduled_ms=to_ms(state.send_at(at)),
            busy_ms=round(entry.busy_for * 1000),
            overlaps=not entry.busy_for or state.resend,
        )
        return EntryOperation(state, operation, row, decision)

    def enqueued_record(self, state: EntryState, at: datetime, task_id: str) -> str:
        """Return the journal record of an enqueued occurrence."""
        return self._record(
            Verdict.ENQUEUED, state, at=Occurrence(state.id, at).instant, id=task_id, base=to_micros(at)
        )

    def skip_record(self, state: EntryState, skipped: Skipped, position: datetime | None = None) -> str:
        """Return the journal record of a skipped range, with ``position`` if no other record has it."""
        return self._record(
            Verdict.SKIPPED,
            state,
            **{"from": Occurrence(state.id, skipped.first).instant},
            until=Occurrence(state.id, skipped.until).instant,
            count=skipped.count,
            why=skipped.reason,
            **({"detail": skipped.detail} if skipped.detail else {}),
            **({"base": to_micros(position)} if position is not None else {}),
        )

    def _record(self, verdict: Verdict, state: EntryState, **details: Any) -> str:
        return json.dumps(
            {
                "verdict": verdict,
                "entry": state.id,
                **({"name": state.label} if state.label != state.id else {}),
                **details,
                "ms": self.ms,
                "epoch": self.term.epoch,
                "by": self.term.holder,
            }
        )


def following(state: EntryState, position: datetime) -> datetime | None:
    """Return the next due instant, if it can be computed."""
    if state.entry.recurrence is None:
        return None
    try:
        following = state.entry.recurrence.next_after(position)
    except Exception:  # reported when the entry is put into the due queue
        return None
    return following if following < FOREVER else None
