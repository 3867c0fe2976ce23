"""Updates of rows in the database, each in one transaction. A row that another transaction has locked is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ha_beat.errors import HaBeatError
from ha_beat.row_store.backend import Database, DatabaseFault, RowStatements, RunState, RunStateUpdate, chunks
from ha_beat.row_store.entry import RowEntry
from ha_beat.schedule_sources.stored_source import CLOCK_TOLERANCE

#: From this many rows with one last run on, a separate statement for them is cheaper.
_ROWS_PER_STATEMENT = 8

#: One-off rows per statement. Each adds about ten parameters.
_FINISHED_PER_STATEMENT = 50


@dataclass(frozen=True, slots=True)
class Run:
    """Last run of a row and its number of runs, according to the ledger."""

    at: datetime
    run_count: int


class TableLocked(HaBeatError):
    """Another transaction has locked the whole table, or the row that marks changes."""


class RowUpdates:
    """Updates of rows. Each is idempotent, and returns the rows that another transaction has locked.

    Each raises the database's errors, or ``TableLocked``.
    """

    def __init__(self, statements: RowStatements, database: Database, now: Callable[[], datetime]) -> None:
        """``now`` returns the scheduling time."""
        self._statements = statements
        self.fault = database.fault
        self.now = now

    def advance(self, runs: Mapping[str, Run], known: Mapping[str, RunState]) -> Sequence[str]:
        """Advance each row to its last run. A row with the same run or a later one stays.

        ``known`` is the run state of these rows as last read.
        """

        def write(locked: Mapping[str, RunState]) -> None:
            differing = self._advance(runs, locked or known)
            if differing:
                # Another leader has written them since they were read.
                self._advance(runs, self._lock_rows(differing))

        return self._write(list(runs), write)

    def disable_finished(self, entries: Mapping[str, RowEntry]) -> Sequence[str]:
        """Disable one-off rows that have run. A row whose task has set another schedule stays enabled."""

        def write(locked: Mapping[str, RunState]) -> None:
            for chunk in chunks(list(locked or entries), _FINISHED_PER_STATEMENT):
                self._statements.disable_finished({pk: entries[pk] for pk in chunk})

        return self._write(list(entries), write)

    def disable_expired(self, ids: Sequence[str]) -> Sequence[str]:
        """Disable the expired ones of these rows."""
        return self._write(ids, lambda locked: self._statements.disable_expired(list(locked or ids), self.now()))

    def _write(self, ids: Sequence[str], write: Callable[[Mapping[str, RunState]], None]) -> Sequence[str]:
        """Write these rows. If that times out, lock those that are free, and write only them.

        ``write`` receives the run state of the rows that were locked for it; nothing at the first attempt, which is for
        all rows.
        """
        try:
            with self._statements.transaction():
                write({})
        except Exception as exc:
            if not (self._timed_out(exc) and self._statements.skips_locked):
                raise
        else:
            return []
        try:
            with self._statements.transaction():
                free = self._lock_rows(ids, skip_locked=True)
                if free:
                    write(free)
        except Exception as exc:
            if self._timed_out(exc):
                raise TableLocked(str(exc)) from exc
            raise
        return [pk for pk in ids if pk not in free]

    def _timed_out(self, exc: Exception) -> bool:
        return self.fault(exc) is DatabaseFault.TIMED_OUT

    def _advance(self, runs: Mapping[str, Run], known: Mapping[str, RunState]) -> list[str]:
        """Advance the rows that have the ``known`` run state. Return those that may have another one."""
        latest = self.now() + CLOCK_TOLERANCE
        groups: dict[RunStateUpdate, list[str]] = {}
        for pk, (last, count) in known.items():
            run = runs[pk]
            if last is None or last < run.at or last > latest:
                groups.setdefault(RunStateUpdate(run.at, max(run.run_count - count, 0), last), []).append(pk)
        differing: list[str] = []
        others: dict[str, RunStateUpdate] = {}
        for update, ids in groups.items():
            if len(ids) < _ROWS_PER_STATEMENT:
                others |= dict.fromkeys(ids, update)
                continue
            for chunk in chunks(ids):
                differing += self._update(dict.fromkeys(chunk, update))
        for chunk in chunks(list(others)):
            differing += self._update({pk: others[pk] for pk in chunk})
        return differing

    def _update(self, updates: Mapping[str, RunStateUpdate]) -> Sequence[str]:
        """Update these rows; return all of them if any was not updated."""
        return [] if self._statements.advance(updates) == len(updates) else list(updates)

    def _lock_rows(self, ids: Sequence[str], *, skip_locked: bool = False) -> dict[str, RunState]:
        """Lock these rows until the transaction ends, and return their run state. Disabled rows are left out."""
        found: dict[str, RunState] = {}
        for chunk in chunks(ids):
            found |= self._statements.lock(chunk, skip_locked=skip_locked)
        return found
