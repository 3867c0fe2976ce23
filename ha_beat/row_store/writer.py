"""Writing of run state to the rows.

Each write is idempotent. It covers only runs of this replica's current or last term. A row that the database refuses
or that another transaction has locked is set aside, and does not hold up the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from ha_beat.clock import Clock
from ha_beat.reasons import Verdict
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.run_state import Run, RunStateTable, chunks
from ha_beat.row_store.set_aside import RowsSetAside, write_apart
from ha_beat.row_store.table import RowTable
from ha_beat.store.ledger import LedgerRow

#: Verdicts that count as a run.
_RAN = frozenset({Verdict.ENQUEUED, Verdict.UNCERTAIN})


class RowWriter:
    """Writer of the rows' run state. The main loop queues updates; the writing thread writes them in bulk."""

    def __init__(
        self,
        table: RunStateTable,
        rows: RowTable,
        clock: Clock,
        settled: Callable[[str], bool] = lambda _: True,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a writer.

        Args:
            table: Run state in the database.
            rows: The rows as last read.
            clock: Measures the time between attempts at a row that can't be written.
            settled: True if the leader has no verdict left to give for the entry with this primary key.
            progress: Called after each chunk of rows, also of the ledger's.
        """
        self._table = table
        self._settled = settled
        self._progress = progress
        self._rows = rows
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._finished: dict[str, RowEntry] = {}
        #: By what could not be written: the run state, and that a row has expired.
        self._set_aside, self._expired_aside = RowsSetAside(clock), RowsSetAside(clock)

    # --- Any thread

    def record(self, entry_id: str, row: LedgerRow) -> None:
        """Queue an update of the row's run state if the ledger row records a run."""
        if row.verdict in _RAN:
            with self._lock:
                self._runs[entry_id] = Run(row.base, row.run_count)

    def disable_finished(self, entry: RowEntry) -> None:
        """Queue the disabling of a one-off row that has run, unless its schedule is changed until it is written."""
        with self._lock:
            self._finished[entry.id] = entry

    # --- The writing thread

    def record_missing(self, ledger: Iterable[Mapping[str, str]]) -> None:
        """Queue the runs in the ledger's rows that a previous leader did not write. ``ledger`` are pages of rows."""
        for page in ledger:
            for entry_id, raw in page.items():
                entry, row = self._rows.entries.get(entry_id), LedgerRow.parse(raw)
                if entry and row and row.run_count > entry.run_state[1] and not entry.once and row.verdict in _RAN:
                    with self._lock:
                        # The page was read before: this leader may have queued a later run.
                        self._runs.setdefault(entry_id, Run(row.base, row.run_count))
            self._progress()

    def write(self) -> None:
        """Write the queued updates; keep them if that fails. Raises the database's errors, after all were tried."""
        runs, finished = self._take()
        waiting = {*runs, *finished}

        def disable(ids: Sequence[str]) -> Sequence[str]:
            return self._table.disable_finished({pk: finished[pk] for pk in ids})

        try:
            failures = [
                *self._write(list(finished), disable, waiting),
                *self._write([pk for pk in runs if pk not in finished], lambda ids: self._advance(ids, runs), waiting),
            ]
        finally:
            with self._lock:
                self._runs = {pk: run for pk, run in runs.items() if pk in waiting} | self._runs
                self._finished = {pk: entry for pk, entry in finished.items() if pk in waiting} | self._finished
        if failures:
            raise failures[0]

    def write_after_term(self) -> None:
        """Write the queued runs of a term that has ended, once.

        The next leader restores a failed write from the ledger. Finished rows are left to it: they may have been
        enabled again.
        """
        runs, _ = self._take()
        for failure in self._write(list(runs), lambda ids: self._advance(ids, runs), set(runs)):
            raise failure

    def disable_expired(self) -> None:
        """Disable the rows that have expired, once each instant before that has its verdict."""
        expired = [pk for pk in self._rows.expiries.due(self._table.now()) if self._settled(pk)]
        for failure in self._write(expired, self._table.disable_expired, set(), self._expired_aside):
            raise failure

    def faults(self) -> dict[str, str]:
        """Return the errors of the rows that can't be written, by name."""
        for aside in (self._set_aside, self._expired_aside):
            aside.keep(self._rows.entries)
        return {**self._expired_aside.faults(), **self._set_aside.faults()}

    def _take(self) -> tuple[dict[str, Run], dict[str, RowEntry]]:
        with self._lock:
            runs, finished = self._runs, self._finished
            self._runs, self._finished = {}, {}
        return runs, finished

    def _write(
        self,
        ids: Sequence[str],
        write: Callable[[Sequence[str]], Sequence[str]],
        waiting: set[str],
        aside: RowsSetAside | None = None,
    ) -> list[Exception]:
        """Write the rows in chunks, and remove from ``waiting`` what was written.

        ``aside`` has the rows that could not be written before, ``None`` for those whose run state could not.

        Returns:
            The error that is not a row's, if there was one.
        """
        aside = aside or self._set_aside
        ready, suspects = aside.split(ids)
        for part in [*chunks(ready), *([pk] for pk in suspects)]:
            try:
                faults = write_apart(part, write, self._table.fault, suspected=len(part) == 1 and part[0] in aside)
            except Exception as exc:
                return [exc]
            self._progress()
            for pk in part:
                if pk in faults:
                    entry = self._rows.entries.get(pk)
                    aside.add(pk, entry.name if entry else pk, faults[pk])
                else:
                    waiting.discard(pk)
                    aside.remove(pk)
        return []

    def _advance(self, ids: Sequence[str], runs: Mapping[str, Run]) -> Sequence[str]:
        """Advance the rows; return those that another transaction has locked."""
        entries = self._rows.entries
        present = {pk: entry for pk in ids if (entry := entries.get(pk)) is not None}
        due = {pk: runs[pk] for pk in present}
        locked = self._table.advance(due, {pk: entry.run_state for pk, entry in present.items()}) if due else ()
        for pk, run in due.items():
            if pk not in locked:
                entry = present[pk]
                entry.run_state = (run.at, max(run.run_count, entry.run_state[1]))
        return locked
