"""Writing of run state to the rows.

Each write is idempotent, and covers only runs of this replica's current or last term. A row that the database refuses
or that another transaction has locked is retried separately, so that it does not delay the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from ha_beat.clock import Clock
from ha_beat.reasons import Verdict
from ha_beat.row_store.backend import chunks
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.failed_rows import FailedRows, write_with_bisection
from ha_beat.row_store.table import RowTable
from ha_beat.row_store.updates import RowUpdates, Run
from ha_beat.store.ledger import LedgerRow

#: Verdicts that count as a run.
_RAN = frozenset({Verdict.ENQUEUED, Verdict.UNCERTAIN})


class RowWriter:
    """Writer of the rows. The main loop queues updates; the writing thread writes them in bulk."""

    def __init__(
        self,
        updates: RowUpdates,
        rows: RowTable,
        clock: Clock,
        has_all_verdicts: Callable[[str], bool] = lambda _: True,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a writer for the ``rows`` as last read.

        ``has_all_verdicts`` is true for an id if each due instant of the entry has its verdict. ``progress`` is called
        after each chunk of rows and each page of the ledger.
        """
        self._updates = updates
        self._has_all_verdicts = has_all_verdicts
        self._progress = progress
        self._rows = rows
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._finished: dict[str, RowEntry] = {}
        self._failed, self._failed_to_expire = FailedRows(clock), FailedRows(clock)

    # --- Any thread

    def queue_run(self, entry_id: str, row: LedgerRow) -> None:
        """Queue an update of the row's run state if the ledger row records a run."""
        if row.verdict in _RAN:
            with self._lock:
                self._runs[entry_id] = Run(row.base, row.run_count)

    def disable_finished(self, entry: RowEntry) -> None:
        """Queue the disabling of a one-off row that has run. The row stays enabled if its schedule is changed first."""
        with self._lock:
            self._finished[entry.id] = entry

    # --- The writing thread

    def record_missing(self, ledger: Iterable[Mapping[str, str]]) -> None:
        """Queue the runs that a previous leader did not write. ``ledger`` are pages of the ledger's rows."""
        for page in ledger:
            for entry_id, raw in page.items():
                entry, row = self._rows.entries.get(entry_id), LedgerRow.parse(raw)
                if entry and row and row.run_count > entry.run_state[1] and not entry.once and row.verdict in _RAN:
                    with self._lock:
                        # This leader may have queued a later run since the page was read.
                        self._runs.setdefault(entry_id, Run(row.base, row.run_count))
            self._progress()

    def write(self) -> None:
        """Write the queued updates, and keep those that fail. Raises the database's errors once all were tried."""
        runs, finished = self._take()
        unwritten = {*runs, *finished}

        def disable(ids: Sequence[str]) -> Sequence[str]:
            return self._updates.disable_finished({pk: finished[pk] for pk in ids})

        try:
            errors = [
                *self._write(list(finished), disable, self._failed, unwritten),
                *self._advance([pk for pk in runs if pk not in finished], runs, unwritten),
            ]
        finally:
            with self._lock:
                self._runs = {pk: run for pk, run in runs.items() if pk in unwritten} | self._runs
                self._finished = {pk: entry for pk, entry in finished.items() if pk in unwritten} | self._finished
        _raise_first(errors)

    def write_after_term(self) -> None:
        """Write the queued runs of a term that has ended, once. Raises the database's errors.

        The next leader restores a failed write from the ledger, and disables finished rows unless they were enabled
        again.
        """
        runs, _ = self._take()
        _raise_first(self._advance(list(runs), runs, set()))

    def disable_expired(self) -> None:
        """Disable expired rows once each earlier instant has its verdict. Raises the database's errors."""
        expired = [pk for pk in self._rows.expiries.due(self._updates.now()) if self._has_all_verdicts(pk)]
        _raise_first(self._write(expired, self._updates.disable_expired, self._failed_to_expire, set()))

    def errors(self) -> dict[str, str]:
        """Return the errors of the rows that can't be written, by name."""
        for failed in (self._failed, self._failed_to_expire):
            failed.keep_only(self._rows.entries)
        return self._failed_to_expire.errors() | self._failed.errors()

    def _take(self) -> tuple[dict[str, Run], dict[str, RowEntry]]:
        with self._lock:
            runs, finished = self._runs, self._finished
            self._runs, self._finished = {}, {}
        return runs, finished

    def _advance(self, ids: Sequence[str], runs: Mapping[str, Run], unwritten: set[str]) -> list[Exception]:
        """Advance these rows to their runs, like :meth:`_write`."""

        def advance(part: Sequence[str]) -> Sequence[str]:
            present = {pk: entry for pk in part if (entry := self._rows.entries.get(pk)) is not None}
            if not present:
                return ()
            known = {pk: entry.run_state for pk, entry in present.items()}
            locked = self._updates.advance({pk: runs[pk] for pk in present}, known)
            for pk in present.keys() - set(locked):
                present[pk].run_state = (runs[pk].at, max(runs[pk].run_count, present[pk].run_state[1]))
            return locked

        return self._write(ids, advance, self._failed, unwritten)

    def _write(
        self,
        ids: Sequence[str],
        write: Callable[[Sequence[str]], Sequence[str]],
        failed: FailedRows,
        unwritten: set[str],
    ) -> list[Exception]:
        """Write the rows in chunks, but separately each row that is in ``failed``. Update ``failed``.

        Written rows are removed from ``unwritten``.

        Returns:
            The error that ended the writing, if it is not the rows' fault.
        """
        ready, retries = failed.split(ids)
        for part in [*chunks(ready), *([pk] for pk in retries)]:
            try:
                errors = write_with_bisection(part, write, self._updates.fault, suspected=part[0] in failed)
            except Exception as exc:
                return [exc]
            self._progress()
            for pk in part:
                if pk in errors:
                    entry = self._rows.entries.get(pk)
                    failed.add(pk, entry.name if entry else pk, errors[pk])
                else:
                    unwritten.discard(pk)
                    failed.remove(pk)
        return []


def _raise_first(errors: Sequence[Exception]) -> None:
    for error in errors:
        raise error
