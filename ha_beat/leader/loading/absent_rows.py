"""Absent rows: those of deleted and disabled entries, which the ledger keeps for a while."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from ha_beat.leader.ledger_writer import EntryOperation
from ha_beat.reasons import Verdict
from ha_beat.store.ledger import KEEP_ABSENT, LedgerRow

#: Age from which a row is deleted. The shadows forget its entry an hour earlier.
_KEPT = KEEP_ABSENT + timedelta(hours=1)

#: Most rows that are deleted in one batch.
_BATCH = 100


def is_forgettable(row: LedgerRow | None, now: datetime) -> bool:
    """True for the row of an entry that was deleted or disabled long ago."""
    return (
        row is not None
        and row.verdict is Verdict.ABSENT
        and row.dispatched_ms < _oldest_ms(now)  # guard: absence-remembered
    )


def _oldest_ms(now: datetime) -> float:
    return (now - _KEPT).timestamp() * 1000


def _absent(raw: str) -> LedgerRow | None:
    row = LedgerRow.parse(raw) if Verdict.ABSENT in raw else None
    return row if row is not None and row.verdict is Verdict.ABSENT else None


class AbsentRows:
    """Entries with absent rows, the oldest first. Asking for old ones costs nothing while there are none."""

    def __init__(self) -> None:
        #: Heap with the time at which each was noted in the ledger, in ms since the Unix epoch.
        self._noted: list[tuple[int, str]] = []

    def clear(self) -> None:
        """Forget all entries, before the whole ledger is read."""
        self._noted.clear()

    def note(self, rows: Mapping[str, str], operations: Iterable[EntryOperation]) -> None:
        """Note the absent rows among raw ``rows`` that were just read, and among those that the operations write."""
        found = [(row.dispatched_ms, entry) for entry, raw in rows.items() if (row := _absent(raw)) is not None]
        written = [(each.row.dispatched_ms, each.state.id) for each in operations if each.row.verdict is Verdict.ABSENT]
        for each in found + written:
            heapq.heappush(self._noted, each)

    def take_old(self, now: datetime) -> list[str]:
        """Return and forget some entries whose rows may be old enough to delete."""
        found: list[str] = []
        while self._noted and self._noted[0][0] < _oldest_ms(now) and len(found) < _BATCH:
            found.append(heapq.heappop(self._noted)[1])
        return found
