"""Rows for the ledger and records for the journal: what is written about an occurrence."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ha_beat.agenda import Slot
from ha_beat.dispatch import Operation
from ha_beat.lease import Term
from ha_beat.ledger import LedgerRow, Verdict, to_micros
from ha_beat.occurrence import Due, Occurrence, Skipped


@dataclass(frozen=True, slots=True)
class Work:
    """One operation of a batch and what it is about."""

    slot: Slot
    operation: Operation
    row: LedgerRow
    due: Due | None = None


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
        task_id: str = "",
    ) -> LedgerRow:
        before = slot.row
        again = before is not None and before.task_id == task_id and bool(task_id)
        run_count = (before.run_count if before else 0) + (verdict == "enqueued" and not again)
        row = LedgerRow(
            base=base,
            verdict=verdict,
            scheduled_at=scheduled_at or (before.scheduled_at if before else None),
            rev=(before.rev if before else 0) + 1,
            dispatched_ms=self._ms,
            epoch=self.term.epoch,
            nonce=self.term.nonce,
            run_count=run_count,
            reason=reason,
            task_id=task_id,
            signature=slot.signature,
        )
        return replace(row, raw=row.encoded())

    def armed(self, slot: Slot) -> Work:
        """From now on the cluster owes this entry its occurrences, whoever leads."""
        row = self.row(slot, slot.base, "armed")
        return Work(slot, Operation(slot.id, slot.expected, row.raw), row)

    def skipped(self, slot: Slot, skipped: Skipped, position: datetime) -> Work:
        """Instants that get their verdict without a message."""
        row = self.row(slot, position, "skipped", scheduled_at=position, reason=skipped.reason)
        operation = Operation(slot.id, slot.expected, row.raw, (self.skip_record(slot.id, skipped, position),))
        return Work(slot, operation, row, Due(None, position, skipped))

    def enqueued_record(self, entry: str, at: datetime, task_id: str) -> str:
        return self._record("enqueued", entry, at=Occurrence(entry, at).instant, id=task_id, base=to_micros(at))

    def skip_record(self, entry: str, skipped: Skipped, position: datetime | None = None) -> str:
        """The range; ``position`` is what the entry is at with it, where no other record says so."""
        return self._record(
            "skipped",
            entry,
            **{"from": Occurrence(entry, skipped.first).instant},
            until=Occurrence(entry, skipped.until).instant,
            count=skipped.count,
            why=skipped.reason,
            **({"base": to_micros(position)} if position is not None else {}),
        )

    def _record(self, verdict: str, entry: str, **details: Any) -> str:
        return json.dumps(
            {
                "verdict": verdict,
                "entry": entry,
                **details,
                "ms": self._ms,
                "epoch": self.term.epoch,
                "by": self.term.holder,
            }
        )


#: The ``base`` of an entry whose own store knows of no run.
NEVER = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
