"""Loading of the schedule into the due queue: all of it when a term begins, and what has changed after an edit."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import TypeVar

from ha_beat import events
from ha_beat.dispatch import Dispatcher
from ha_beat.election.leader_handle import Tenure
from ha_beat.errors import StoreError
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.absent_rows import AbsentRows, is_forgettable
from ha_beat.leader.loading.gradual_load import LARGE, PAGE, PART, GradualLoad
from ha_beat.leader.loading.reconcile import Reconciled, absences, ahead_of_clock, reconcile, unscheduled
from ha_beat.leader.loading.recovery import Recovery
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Absence, Planner
from ha_beat.reasons import Verdict
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

_T = TypeVar("_T")

#: Most rows of one batch without messages.
_MOST_ROWS = 1000

#: Operations that bring the ledger up to date, in batches.
Batches = deque[Sequence[EntryOperation]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Queue after a load, and what follows from it.

    ``first``: operations to submit before due entries. ``held``: operations, by entry, that wait until the entry's
    claimed occurrence was sent again. ``held_back``: entries wait for a reading under this term. ``rest``: entries that
    are not loaded yet.
    """

    queue: DueQueue
    first: Batches
    held: dict[str, EntryOperation]
    held_back: bool
    rest: GradualLoad | None = None


class ScheduleLoader:
    """Loader of one term."""

    def __init__(
        self, parts: LeaderParts, tenure: Tenure, planner: Planner, claims: OpenClaims, recovery: Recovery
    ) -> None:
        self._parts = parts
        self._tenure = tenure
        self._planner = planner
        self._claims = claims
        self._recovery = recovery
        self._absent = AbsentRows()
        #: Overdue and new entries among those that changed and were not reported yet.
        self._overdue = self._new = 0

    def load(self, term: Term, dispatcher: Dispatcher, queue: DueQueue, *, at_once: bool = False) -> Loaded:
        """Load all entries, each at its position by the ledger; of a large schedule the first part.

        Args:
            term: The term.
            dispatcher: Its dispatcher.
            queue: The entries as loaded before.
            at_once: Load no part.

        Raises:
            FencedOff: the term is over.
            StoreError: the ledger could not be read.
        """
        self._overdue = self._new = 0
        absence = self._parts.source.absence(term)
        entries = self._with_progress(self._parts.source.load())
        some = list(islice(entries, LARGE + 1))
        if len(some) > LARGE and not at_once and self._loads_gradually(term, dispatcher):
            return self._begin(term, dispatcher, queue, chain(some, entries), absence)
        return self._load_all(term, dispatcher, chain(some, entries), absence)

    def _load_all(
        self, term: Term, dispatcher: Dispatcher, entries: Iterable[ScheduledEntry], absence: Absence | None
    ) -> Loaded:
        parts = self._parts
        rows = dispatcher.ledger.read()
        now = parts.time.now()
        found = self._recovery.assess(rows, dispatcher.ledger, now, self._reached_at(now))
        if found is not None and found.total:
            parts.emit(events.StateLost(found.kind, parts.options.catch_up_after_loss))
        self._absent.clear()
        reconciled = self._reconcile(term, entries, rows, now, absence)
        self._report_ahead(reconciled.ahead)
        self._claims.load(dispatcher, term)
        resent = self._claims.to_be_resent(rows)
        held = {each.state.id: each for each in reconciled.operations if _waits(each, resent)}
        first = self._batches([each for each in reconciled.operations if each.state.id not in held])
        if self._recovery.loss is None:
            parts.shadow.forget(rows, now)
        queue = DueQueue()
        overdue = self._plan(queue, reconciled, now, resent)
        self._claims.resend_republishable(queue, term, now)
        parts.emit(events.ScheduleReady(len(queue), overdue, reconciled.new))
        return Loaded(queue, first, held, reconciled.held_back)

    # --- A large schedule

    def _loads_gradually(self, term: Term, dispatcher: Dispatcher) -> bool:
        """True if no entry depends on the rows of the others: nothing was lost or claimed."""
        if not self._recovery.settled:
            counter = dispatcher.ledger.journal_counter()
            if not self._recovery.can_read_gradually(counter):
                return False
        return not dispatcher.open_claims(term)

    def _begin(
        self,
        term: Term,
        dispatcher: Dispatcher,
        queue: DueQueue,
        entries: Iterator[ScheduledEntry],
        absence: Absence | None,
    ) -> Loaded:
        parts, ledger = self._parts, dispatcher.ledger
        self._absent.clear()
        self._claims.load(dispatcher, term)
        # An entry that is in the queue is dispatched meanwhile.
        soonest = deque(parts.forecast.take() if parts.forecast is not None and not len(queue) else ())
        ran = any(ledger.pages(PART))
        rest = GradualLoad(soonest, entries, ledger.pages(PAGE), absence, ran, parts.emit)
        return Loaded(queue, Batches(), {}, held_back=False, rest=rest)

    def load_part(self, term: Term, dispatcher: Dispatcher, rest: GradualLoad, queue: DueQueue) -> Loaded | None:
        """Load the next entries of a large schedule into the queue.

        Returns:
            ``None`` if all must be loaded at once: the ledger is behind in one of the entries, or has an open claim.

        Raises:
            StoreError: the ledger could not be read. The next call tries again.
        """
        parts, now = self._parts, self._parts.time.now()
        began = parts.clock.elapsed()
        entries = rest.take(parts.source.load, parts.pace.begin())
        if not entries:
            rest.all_loaded = True
            return self._finish(term, dispatcher, rest, queue, now)
        wanted = {entry.id for entry in entries}
        asked = parts.clock.elapsed()
        try:
            rows = dispatcher.ledger.read_some(wanted)
        except StoreError:
            rest.put_back(entries)  # guard: gradual-part-unread
            raise
        answered = parts.clock.elapsed()
        if not self._recovery.settled and parts.shadow.lost(rows, now, wanted):  # guard: gradual-row-behind
            return None
        done = self._load_some(term, wanted, entries, rows, queue, now, rest.absence, ran=rest.ran)
        if done is None:
            return None
        reconciled, overdue = done
        rest.seen |= wanted
        rest.ahead += reconciled.ahead
        rest.overdue += overdue
        rest.new += reconciled.new
        rest.held_back |= reconciled.held_back
        rest.took(answered - asked, parts.clock.elapsed() - answered + asked - began)
        return Loaded(queue, _one_batch(reconciled.operations), {}, rest.held_back, rest)

    def _finish(self, term: Term, dispatcher: Dispatcher, rest: GradualLoad, queue: DueQueue, now: datetime) -> Loaded:
        """Read the rows of entries that this replica's schedule lacks, a page at a time."""
        parts, absence = self._parts, rest.absence
        try:
            page = next(rest.rows, None)
        except StoreError:
            rest.rows = dispatcher.ledger.pages(PAGE)
            raise
        if page is not None:
            rest.recorded |= page.keys()
            others = {entry: raw for entry, raw in page.items() if entry not in rest.seen}
            parts.shadow.learn_rows(others)
            operations = []
            if absence is not None and absence.certain:
                operations = absences(others, parts.shadow, None, LedgerWriter(term, now))
                self._absent.note(others, operations)
            rest.held_back |= absence is not None and not absence.certain and bool(others)
            return Loaded(queue, _one_batch(operations), {}, rest.held_back, rest)
        for state in list(queue.entries()):
            if state.id not in rest.seen:
                queue.drop(state)
        parts.shadow.forget(rest.recorded, now)
        self._recovery.found_intact()
        self._report_ahead(rest.ahead)
        parts.emit(events.ScheduleReady(len(queue), rest.overdue, rest.new))
        return Loaded(queue, Batches(), {}, rest.held_back)

    # --- Changes

    def load_changed(
        self, term: Term, dispatcher: Dispatcher, ids: Set[str], queue: DueQueue, *, last: bool
    ) -> Loaded | None:
        """Bring these entries of the queue up to date, at a cost that does not depend on the others.

        ``last`` is True if no other entry has changed. No loss of state may be under recovery, and no operation held.

        Returns:
            ``None`` if an open claim requires a load of all entries at once.

        Raises:
            StoreError: the ledger could not be read.
        """
        rows, now = dispatcher.ledger.read_some(ids), self._parts.time.now()
        absence = self._parts.source.absence(term)
        entries = self._parts.source.load(ids)
        ran = bool(rows) or len(queue) > 0
        done = self._load_some(term, ids, entries, rows, queue, now, absence, ran=ran)
        if done is None:
            return None
        reconciled, overdue = done
        self._report_ahead(reconciled.ahead)
        self._overdue += overdue
        self._new += reconciled.new
        if last:
            self._parts.emit(events.ScheduleReady(len(queue), self._overdue, self._new))
            self._overdue = self._new = 0
        return Loaded(queue, _one_batch(reconciled.operations), {}, reconciled.held_back)

    def _load_some(
        self,
        term: Term,
        ids: Set[str],
        entries: Iterable[ScheduledEntry],
        rows: Mapping[str, str],
        queue: DueQueue,
        now: datetime,
        absence: Absence | None,
        *,
        ran: bool,
    ) -> tuple[Reconciled, int] | None:
        """Replace the entries of these ids in the queue. Return how many are overdue, ``None`` if one is claimed."""
        states = [state for entry_id in ids if (state := queue.get(entry_id)) is not None]
        if any(state.resend for state in states) or any(map(_is_claimed, rows.values())):
            return None
        reconciled = self._reconcile(term, entries, rows, now, absence, ran=ran)
        for state in states:
            queue.drop(state)
        overdue = self._plan(queue, reconciled, now)
        keep_deadlines(states, queue)
        return reconciled, overdue

    def drop_old_rows(self, term: Term, dispatcher: Dispatcher, queue: DueQueue) -> Batches:
        """Return the operations that delete rows of entries that were deleted or disabled long ago.

        A load of all entries deletes them too, but in a long term there is none.

        Raises:
            StoreError: the ledger could not be read. The next load of all entries deletes these rows.
        """
        now = self._parts.time.now()
        old = self._absent.take_old(now)
        if not old:
            return Batches()
        writer = LedgerWriter(term, now)
        operations = []
        for entry_id, raw in dispatcher.ledger.read_some(old).items():
            row = LedgerRow.parse(raw)
            if row is not None and is_forgettable(row, now) and queue.get(entry_id) is None:
                operations.append(writer.delete(unscheduled(entry_id, row.base, row), row))
                self._parts.shadow.drop(entry_id)
        return _one_batch(operations)

    def _reconcile(
        self,
        term: Term,
        entries: Iterable[ScheduledEntry],
        rows: Mapping[str, str],
        now: datetime,
        absence: Absence | None,
        *,
        ran: bool | None = None,
    ) -> Reconciled:
        parts = self._parts
        reconciled = reconcile(
            self._with_progress(entries),
            rows,
            parts.shadow,
            self._recovery.loss,
            writer=LedgerWriter(term, now),
            catch_up=parts.options.catch_up_after_loss,
            absence=absence,
            cluster_ran=ran,
        )
        for failure in reconciled.failures:
            parts.emit(failure)
        if absence is not None and absence.certain:
            self._absent.note(rows, reconciled.operations)
        parts.shadow.gen = term.gen
        # Most entries are not due in this term. If the ledger is lost in it, only the shadow has their positions.
        parts.shadow.learn_rows(rows)  # guard: shadow-learns-ledger
        return reconciled

    def _report_ahead(self, ahead: Sequence[EntryState]) -> None:
        failed = ahead_of_clock(ahead)
        if failed is not None:
            self._parts.emit(failed)

    def _plan(self, queue: DueQueue, reconciled: Reconciled, now: datetime, resent: Set[str] = frozenset()) -> int:
        """Put the entries into the queue. Return how many are overdue."""
        overdue = 0
        for state in self._with_progress(reconciled.states):
            if state.id in resent:
                queue.put(state, now)
            else:
                self._planner.plan(queue, state, now)
            state.rest()
            overdue += state.due_at is not None and state.entry.recurrence is not None and state.due_at <= now
        return overdue

    def _batches(self, operations: Sequence[EntryOperation]) -> Batches:
        size = self._parts.options.batch_size
        return deque(operations[start : start + size] for start in range(0, len(operations), size))

    def _with_progress(self, items: Iterable[_T]) -> Iterator[_T]:
        for item in items:
            self._parts.pace.progress()
            yield item

    def _reached_at(self, now: datetime) -> datetime | None:
        since = self._tenure.back_at
        return None if since is None else now - timedelta(seconds=self._parts.clock.elapsed() - since)


def keep_deadlines(before: Iterable[EntryState], queue: DueQueue) -> None:
    """Keep since when occurrences fail that are due as before, so that a reload does not postpone their verdict."""
    for old in before:
        if old.failure is not None:
            new = queue.get(old.id)
            if new is not None and new is not old and new.due_at == old.due_at:
                new.failure = replace(old.failure, builds=0)


def _one_batch(operations: Sequence[EntryOperation]) -> Batches:
    """Return one batch, so that due entries have their turn after it; more only if it would block Redis for long."""
    return Batches(operations[start : start + _MOST_ROWS] for start in range(0, len(operations), _MOST_ROWS))


def _is_claimed(raw: str) -> bool:
    row = LedgerRow.parse(raw)
    return row is not None and row.verdict is Verdict.CLAIMED


def _waits(each: EntryOperation, resent: Container[str]) -> bool:
    """True if an operation must not replace the row of a claimed occurrence, because that is sent again first."""
    return each.state.id in resent and each.state.entry.celery_entry is not None  # guard: claim-resent-first
