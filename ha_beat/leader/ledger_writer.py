"""Rows for the ledger and records for the journal: what is written about an occurrence."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ha_beat.clock import to_micros
from ha_beat.dispatch import Operation
from ha_beat.leader.due_queue import Slot
from ha_beat.reasons import Verdict
from ha_beat.schedule.misfire import Decision, Skipped
from ha_beat.schedule.occurrence import FOREVER, Occurrence
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow


@dataclass(frozen=True, slots=True)
class Work:
    """One operation of a batch and what it is about."""

    slot: Slot
    operation: Operation
    row: LedgerRow
    due: Decision | None = None


@dataclass(frozen=True, slots=True)
class Scribe:
    """Writes under one term, at one instant."""

    term: Term
    now: datetime

    @property
    def _ms(self) -> int:
        return round(self.now.timestamp() * 1000)

    def row(
        self,
        slot: Slot,
        base: datetime,
        verdict: Verdict,
        *,
        scheduled_at: datetime | None = None,
        reason: str = "",
        detail: str = "",
        task_id: str = "",
        in_doubt_until: datetime | None = None,
    ) -> LedgerRow:
        before = slot.row
        again = before is not None and before.task_id == task_id and bool(task_id)
        run_count = slot.runs + (verdict is Verdict.ENQUEUED and not again)
        row = LedgerRow(
            base=base,
            verdict=verdict,
            scheduled_at=scheduled_at or (before.scheduled_at if before else None),
            following=_following(slot, base),
            in_doubt_until=in_doubt_until,
            rev=(before.rev if before else 0) + 1,
            dispatched_ms=self._ms,
            epoch=self.term.epoch,
            nonce=self.term.nonce,
            run_count=run_count,
            reason=reason,
            detail=detail,
            task_id=task_id,
            signature=slot.signature,
        )
        return replace(row, raw=row.encoded())

    def armed(self, slot: Slot, *, in_doubt_until: datetime | None = None) -> Work:
        """From now on the cluster owes this entry its occurrences, whoever leads; but none that is in doubt."""
        row = self.row(slot, slot.base, Verdict.ARMED, in_doubt_until=in_doubt_until)
        return Work(slot, Operation(slot.id, slot.expected, row.raw), row)

    def absent(self, slot: Slot) -> Work:
        """The entry is gone or disabled: from now on it is owed nothing, until it is armed again."""
        row = self.row(slot, slot.base, Verdict.ABSENT)
        return Work(slot, Operation(slot.id, slot.expected, row.raw), row)

    def forgotten(self, slot: Slot, row: LedgerRow) -> Work:
        """The entry has been absent for so long that its row goes."""
        return Work(slot, Operation(slot.id, slot.expected, ""), row)

    def skipped(self, slot: Slot, skipped: Skipped, position: datetime, *, last: datetime | None = None) -> Work:
        """Instants that get their verdict without a message. ``last`` of them is the position, unless given."""
        row = self.row(
            slot, position, Verdict.SKIPPED, scheduled_at=last or position, reason=skipped.reason, detail=skipped.detail
        )
        operation = Operation(slot.id, slot.expected, row.raw, (self.skip_record(slot, skipped, position),))
        return Work(slot, operation, row, Decision(None, position, skipped))

    def enqueued_record(self, slot: Slot, at: datetime, task_id: str) -> str:
        return self._record(Verdict.ENQUEUED, slot, at=Occurrence(slot.id, at).instant, id=task_id, base=to_micros(at))

    def skip_record(self, slot: Slot, skipped: Skipped, position: datetime | None = None) -> str:
        """The range; ``position`` is what the entry is at with it, where no other record says so."""
        return self._record(
            Verdict.SKIPPED,
            slot,
            **{"from": Occurrence(slot.id, skipped.first).instant},
            until=Occurrence(slot.id, skipped.until).instant,
            count=skipped.count,
            why=skipped.reason,
            **({"detail": skipped.detail} if skipped.detail else {}),
            **({"base": to_micros(position)} if position is not None else {}),
        )

    def _record(self, verdict: Verdict, slot: Slot, **details: Any) -> str:
        return json.dumps(
            {
                "verdict": verdict,
                "entry": slot.id,
                **({"name": slot.name} if slot.name not in {"", slot.id} else {}),
                **details,
                "ms": self._ms,
                "epoch": self.term.epoch,
                "by": self.term.holder,
            }
        )


def _following(slot: Slot, base: datetime) -> datetime | None:
    """What is due next, where that can be known."""
    if slot.instants is None:
        return None
    try:
        following = slot.instants.next_after(base)
    except Exception:  # told when it is put on the agenda
        return None
    return following if following < FOREVER else None
