"""Writing of run state with the statements of a store. Each write is idempotent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ha_beat.errors import HaBeatError
from ha_beat.row_store.backend import Database, DatabaseFault, RowStatements, RunState, RunStateUpdate
from ha_beat.row_store.entry import RowEntry
from ha_beat.schedule_sources.stored_source import CLOCK_TOLERANCE

#: Rows per statement.
CHUNK = 500

#: From this many rows with one last run on, a separate statement for them is cheaper.
_ROWS_PER_STATEMENT = 8

#: One-off rows per statement. Each adds about ten parameters.
_FINISHED_PER_STATEMENT = 50


@dataclass(frozen=True, slots=True)
class Run:
    """Run state of a row according to the ledger."""

    at: datetime
    run_count: int


class TableLocked(HaBeatError):
    """Another transaction has locked the whole table, or the row that marks changes."""


class RunStateTable:
    """Run state of the rows in the database."""

    def __init__(self, statements: RowStatements, database: Database, now: Callable[[], datetime]) -> None:
        """``now`` returns the scheduling time."""
        self._statements = statements
        self.fault = database.fault
        self.now = now

    # Each returns the rows that another transaction has locked, and raises the database's errors, or `TableLocked`.

    def advance(self, runs: Mapping[str, Run], known: Mapping[str, RunState]) -> Sequence[str]:
        """Advance each row to its run state. A row that is there already, or ahead, stays as it is.

        ``known`` is the run state of these rows as last read.
        """

        def write(found: Mapping[str, RunState]) -> None:
            differing = self._advance(runs, found or known)
            if differing:
                # Another leader has written them since they were read.
                self._advance(runs, self._lock_rows(differing))

        return self._write_free(list(runs), write)

    def disable_finished(self, entries: Mapping[str, RowEntry]) -> Sequence[str]:
        """Disable one-off rows that have run, unless their schedule is no longer that of the entry."""

        def write(free: Mapping[str, RunState]) -> None:
            for chunk in chunks(list(free or entries), _FINISHED_PER_STATEMENT):
                # Its own task may have set its next run.
                self._statements.disable_finished({pk: entries[pk] for pk in chunk})

        return self._write_free(list(entries), write)

    def disable_expired(self, ids: Sequence[str]) -> Sequence[str]:
        """Disable those of the rows that have expired."""
        return self._write_free(ids, lambda free: self._statements.disable_expired(list(free or ids), self.now()))

    def _write_free(self, ids: Sequence[str], write: Callable[[Mapping[str, RunState]], None]) -> Sequence[str]:
        """Write these rows; if that exceeds its time because of a lock, only those that are free.

        ``write`` receives the rows that were locked for it, or none if it has to write all.
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
        """Write these rows where they have the ``known`` run state; return those that may have another."""
        latest = self.now() + CLOCK_TOLERANCE
        groups: dict[RunStateUpdate, list[str]] = {}
        for pk, (last, count) in known.items():
            run = runs[pk]
            if last is None or last < run.at or last > latest:
                groups.setdefault(RunStateUpdate(run.at, max(run.run_count - count, 0), last), []).append(pk)
        differing: list[str] = []
        single: dict[str, RunStateUpdate] = {}
        for update, ids in groups.items():
            if len(ids) < _ROWS_PER_STATEMENT:
                single |= dict.fromkeys(ids, update)
                continue
            for chunk in chunks(ids):
                differing += self._update(dict.fromkeys(chunk, update))
        for chunk in chunks(list(single)):
            differing += self._update({pk: single[pk] for pk in chunk})
        return differing

    def _update(self, updates: Mapping[str, RunStateUpdate]) -> Sequence[str]:
        """Update these rows; return all of them if any was not updated."""
        return [] if self._statements.advance(updates) == len(updates) else list(updates)

    def _lock_rows(self, ids: Sequence[str], *, skip_locked: bool = False) -> dict[str, RunState]:
        """Lock these rows until the transaction ends; return their run state. Disabled rows are left out."""
        found: dict[str, RunState] = {}
        for chunk in chunks(ids):
            found |= self._statements.lock(chunk, skip_locked=skip_locked)
        return found


def chunks(items: Sequence[str], size: int = CHUNK) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
