"""Entries that are due, by the ledger, while no leader has loaded the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ha_beat.clock import Clock, to_micros
from ha_beat.reasons import Verdict
from ha_beat.store.ledger import Ledger, LedgerRow
from ha_beat.store.membership import ClusterView

#: Seconds without a leader that has loaded the schedule, after which the ledger is read, and between two such reads.
_READ_AFTER = 10.0
_READ_INTERVAL = 15.0


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
    """Return what is due by these ledger rows, except for entries whose schedule class tells no next instant."""
    due = []
    for raw in rows.values():
        row = LedgerRow.parse(raw)
        if row is None or row.following is None or row.verdict is Verdict.ABSENT:
            continue
        at_ms = to_micros(row.following) // 1000
        if at_ms <= now_ms:
            due.append(at_ms)
    return Unattended(len(due), min(due, default=0))


class UnattendedReader:
    """Reader of the whole ledger, which it reads seldom. Used by one thread."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        #: Time since which no leader has loaded the schedule.
        self._since: float | None = None
        self._next_read = 0.0
        self._found = NOTHING_UNATTENDED

    def read(self, view: ClusterView) -> Unattended:
        """Return what is due, as last read.

        Raises:
            StoreError: Redis did not answer.
        """
        now = self._clock.elapsed()
        if view.taken_up:
            self._since, self._found = None, NOTHING_UNATTENDED
            return self._found
        self._since = now if self._since is None else self._since
        if now - self._since >= _READ_AFTER and now >= self._next_read:
            self._next_read = now + _READ_INTERVAL
            self._found = unattended(self._ledger.read(), view.server_ms)
        return self._found
