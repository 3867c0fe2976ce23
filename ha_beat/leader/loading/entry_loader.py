"""Loader of entries whose ledger rows were read: it reconciles both, and puts the entries into the due queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from ha_beat import events
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.absent_rows import AbsentRows
from ha_beat.leader.loading.reconcile import Reconciled, ahead_of_clock, reconcile
from ha_beat.leader.loading.recovery import Recovery
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Absence, Planner
from ha_beat.reasons import Verdict
from ha_beat.store.ledger import LedgerRow

_T = TypeVar("_T")

#: Most rows of one batch without messages. More would block Redis for long.
_MOST_ROWS = 1000

#: Operations that bring the ledger up to date, in batches.
Batches = deque[Sequence[EntryOperation]]


def in_batches(operations: Sequence[EntryOperation], size: int = _MOST_ROWS) -> Batches:
    """Return batches of these operations."""
    return deque(operations[start : start + size] for start in range(0, len(operations), size))


@dataclass(frozen=True, slots=True)
class Reading:
    """Entries of the schedule and rows of the ledger, as read for a load or a part of it.

    ``absence`` is what a missing entry means. ``cluster_ran`` is False if the whole ledger is empty.
    """

    entries: Iterable[ScheduledEntry]
    rows: Mapping[str, str]
    absence: Absence | None
    cluster_ran: bool


@dataclass(slots=True)
class LoadSummary:
    """Summary of the entries that were loaded, perhaps in several parts. ``ahead`` are far ahead of the clock."""

    overdue: int = 0
    new: int = 0
    ahead: list[EntryState] = field(default_factory=list)

    def add(self, reconciled: Reconciled, overdue: int) -> None:
        """Add a part."""
        self.overdue += overdue
        self.new += reconciled.new
        self.ahead += reconciled.ahead

    def report(self, entries: int, emit: Callable[[events.Event], None]) -> None:
        """Emit that the load is complete. The queue holds this number of entries."""
        failed = ahead_of_clock(self.ahead)
        if failed is not None:
            emit(failed)
        emit(events.ScheduleReady(entries, self.overdue, self.new))


class EntryLoader:
    """Loader of entries in one term. ``absent`` are the rows of deleted and disabled entries."""

    def __init__(self, parts: LeaderParts, planner: Planner, recovery: Recovery) -> None:
        self._parts = parts
        self._planner = planner
        self._recovery = recovery
        self.absent = AbsentRows()

    def reconcile(self, writer: LedgerWriter, read: Reading) -> Reconciled:
        """Reconcile entries with their rows, and report those that fail."""
        parts, rows, absence = self._parts, read.rows, read.absence
        reconciled = reconcile(
            self.with_progress(read.entries),
            rows,
            parts.shadow,
            self._recovery.loss,
            writer=writer,
            catch_up=parts.options.catch_up_after_loss,
            absence=absence,
            cluster_ran=read.cluster_ran,
        )
        for failure in reconciled.failures:
            parts.emit(failure)
        if absence is not None and absence.certain:
            self.absent.note(rows, reconciled.operations)
        parts.shadow.gen = writer.term.gen
        # Most entries are not due in this term. If the ledger is lost in it, only the shadow has their positions.
        parts.shadow.learn_rows(rows)  # guard: shadow-learns-ledger
        return reconciled

    def plan(
        self, queue: DueQueue, reconciled: Reconciled, now: datetime, resent: Set[str], summary: LoadSummary
    ) -> None:
        """Put the entries into the queue. The ``resent`` ones are planned when their claimed occurrences are queued."""
        overdue = 0
        for state in self.with_progress(reconciled.states):
            if state.id in resent:
                queue.put(state, now)
            else:
                self._planner.plan(queue, state, now)
            state.rest()
            overdue += state.due_at is not None and state.entry.recurrence is not None and state.due_at <= now
        summary.add(reconciled, overdue)

    def replace(
        self, queue: DueQueue, ids: Set[str], writer: LedgerWriter, read: Reading, summary: LoadSummary
    ) -> Reconciled | None:
        """Replace the entries of these ids in the queue. Return ``None`` if one of them has an open claim."""
        states = [state for entry_id in ids if (state := queue.get(entry_id)) is not None]
        if any(state.resend for state in states) or any(map(_is_claimed, read.rows.values())):
            return None
        reconciled = self.reconcile(writer, read)
        for state in states:
            queue.drop(state)
        self.plan(queue, reconciled, writer.now, frozenset(), summary)
        keep_deadlines(states, queue)
        return reconciled

    def with_progress(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield the items, and report progress of the main loop for each."""
        for item in items:
            self._parts.pace.progress()
            yield item


def keep_deadlines(before: Iterable[EntryState], queue: DueQueue) -> None:
    """Keep since when occurrences fail that are due as before, so that a reload does not postpone their verdict."""
    for old in before:
        if old.failure is not None:
            new = queue.get(old.id)
            if new is not None and new is not old and new.due_at == old.due_at:
                new.failure = replace(old.failure, builds=0)


def _is_claimed(raw: str) -> bool:
    row = LedgerRow.parse(raw)
    return row is not None and row.verdict is Verdict.CLAIMED
