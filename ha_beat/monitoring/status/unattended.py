"""Entries that are due while no leader has them on its queue, by the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ha_beat.clock import to_micros
from ha_beat.reasons import Verdict
from ha_beat.store.ledger import LedgerRow


@dataclass(frozen=True, slots=True)
class Unattended:
    """Number of due entries, and the due instant of the oldest in ms since the Unix epoch (0 for none)."""

    due: int = 0
    oldest_ms: int = 0

    def overdue(self, now_ms: int) -> float:
        """Return for how many seconds the oldest has been due."""
        return max(0.0, (now_ms - self.oldest_ms) / 1000) if self.due else 0.0


NOTHING_UNATTENDED = Unattended()


def unattended(rows: Mapping[str, str], now_ms: int) -> Unattended:
    """Return what is due by these ledger rows. Schedule classes that cannot tell their next instant do not count."""
    due = []
    for raw in rows.values():
        row = LedgerRow.parse(raw)
        if row is None or row.following is None or row.verdict is Verdict.ABSENT:
            continue
        at_ms = to_micros(row.following) // 1000
        if at_ms <= now_ms:
            due.append(at_ms)
    return Unattended(len(due), min(due, default=0))
