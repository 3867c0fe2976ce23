"""Writing of run state to redbeat's records, by the leader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime

from ha_beat.reasons import Verdict
from ha_beat.redbeat.entries import EntryTable, meta_of, run_state_of
from ha_beat.redbeat.store import Record, RedBeatStore
from ha_beat.schedule_sources.stored_source import CLOCK_TOLERANCE
from ha_beat.store.ledger import LedgerRow

_RAN = frozenset({Verdict.ENQUEUED, Verdict.UNCERTAIN})

#: Last run and number of runs.
_Run = tuple[datetime, int]


class RunWriter:
    """Writer of run state. The main loop queues runs; one thread writes them. Every write is idempotent."""

    def __init__(self, store: RedBeatStore, table: EntryTable, now: Callable[[], datetime]) -> None:
        """``now`` returns the scheduling time."""
        self._store = store
        self._table = table
        self._now = now
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}

    def queue_run(self, entry_id: str, row: LedgerRow) -> None:
        """Queue the run state of a ledger row that records a run. Any thread may call this."""
        if row.verdict in _RAN:
            with self._lock:
                self._runs[entry_id] = row.base, row.run_count

    def record_missing(self, ledger: Mapping[str, str]) -> None:
        """Queue the runs that a previous leader did not write. ``ledger`` has the ledger's rows."""
        for entry_id, entry in self._table.entries.copy().items():
            row = LedgerRow.parse(ledger.get(entry_id, ""))
            if row is not None and row.run_count > entry.run_state[1] and row.signature == entry.signature:
                self.queue_run(entry_id, row)

    def write(self) -> None:
        """Write the queued run state; keep it if that fails. Raises ``StoreError``."""
        with self._lock:
            runs, self._runs = self._runs, {}
        unwritten = runs
        try:
            unwritten = self._write(runs)
        finally:
            with self._lock:
                self._runs = unwritten | self._runs

    def _write(self, runs: dict[str, _Run]) -> dict[str, _Run]:
        """Write these runs. Return those whose record another program has replaced by a record of a run."""
        latest = self._now() + CLOCK_TOLERANCE
        new: dict[str, tuple[Record, float]] = {}
        expected: dict[str, bytes] = {}
        for entry_id, (at, count) in runs.items():
            key, entry = self._store.keys.entry(entry_id), self._table.entries.get(entry_id)
            known = self._table.records.get(key)
            if entry is None or known is None:
                continue
            last, stored, _ = run_state_of(known)
            if last is not None and at <= last <= latest and stored is not None:
                continue
            expected[key] = known.meta
            record = Record(known.definition, meta_of(at, max(count, stored or 0)), entry.stamp.encode())
            new[key] = record, entry.score(at)
        differing = self._store.write_runs(new, expected)
        unwritten = {}
        for key, meta in differing.items():
            known, entry_id = self._table.records.get(key), self._table.id_of(key)
            # The reader finds all other changes by programs.
            if meta is not None and known is not None and b'"total_run_count"' in meta:
                self._table.ran(key, Record(known.definition, meta, known.stamp))
                unwritten[entry_id] = runs[entry_id]
        for key in new.keys() - differing.keys():
            self._table.ran(key, new[key][0])
        return unwritten
