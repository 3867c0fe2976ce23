"""Loader of the schedule: all of it when a term begins, and only the changes after an edit."""

from __future__ import annotations

from collections.abc import Container, Iterable, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice

from ha_beat import events
from ha_beat.dispatch import Dispatcher
from ha_beat.election.leader_handle import TermOrigin
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.absent_rows import is_forgettable
from ha_beat.leader.loading.entry_loader import Batches, EntryLoader, LoadSummary, Reading, in_batches
from ha_beat.leader.loading.gradual_load import PART, GradualLoad
from ha_beat.leader.loading.reconcile import Reconciled, unscheduled
from ha_beat.leader.loading.recovery import Recovery
from ha_beat.leader.open_claims import OpenClaims
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Absence, Planner
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

#: Number of entries above which a schedule is loaded gradually.
LARGE = 1000


@dataclass(frozen=True, slots=True)
class Loaded:
    """Queue with all entries, and what follows from the load.

    ``first``: operations to submit before due entries. ``after_resend``: operations, by entry, that wait until the
    entry's claimed occurrence was sent again. ``awaits_read``: some entries wait until the schedule is read under this
    term.
    """

    queue: DueQueue
    first: Batches
    after_resend: dict[str, EntryOperation]
    awaits_read: bool


class ScheduleLoader:
    """Loader of one term."""

    def __init__(
        self, parts: LeaderParts, origin: TermOrigin, planner: Planner, claims: OpenClaims, recovery: Recovery
    ) -> None:
        self._parts = parts
        self._origin = origin
        self._claims = claims
        self._recovery = recovery
        self._entries = EntryLoader(parts, planner, recovery)
        #: Summary of the changes that were loaded and not reported yet.
        self._changes = LoadSummary()

    def load(
        self, term: Term, dispatcher: Dispatcher, queue: DueQueue, *, at_once: bool = False
    ) -> Loaded | GradualLoad:
        """Load all entries, each at its position by the ledger. Begin to load a large schedule in parts.

        ``queue`` holds the entries as loaded before. With ``at_once``, even a large schedule is loaded in one part.

        Raises:
            FencedOff: the term is over.
            StoreError: the ledger could not be read.
        """
        parts = self._parts
        self._changes = LoadSummary()
        absence = parts.source.absence(term)
        source = self._entries.with_progress(parts.source.load())
        some = list(islice(source, LARGE + 1))
        entries = chain(some, source)  # guard: absence-read-before-load
        if len(some) <= LARGE or at_once or not self._can_load_gradually(term, dispatcher):
            return self._load_all(term, dispatcher, entries, absence)
        self._entries.absent.clear()
        self._claims.load(dispatcher, term)
        ledger, reloads = dispatcher.ledger, len(queue) > 0
        ran = any(ledger.pages(PART))
        return GradualLoad(
            parts, self._entries, self._recovery, ledger, entries, absence, cluster_ran=ran, reloads=reloads
        )

    def _can_load_gradually(self, term: Term, dispatcher: Dispatcher) -> bool:
        """True if no entry depends on the rows of the others: nothing was lost or claimed."""
        if not self._recovery.settled:
            counter = dispatcher.ledger.journal_counter()
            if not self._recovery.can_read_gradually(counter):
                return False
        return not dispatcher.open_claims(term)

    def _load_all(
        self, term: Term, dispatcher: Dispatcher, entries: Iterable[ScheduledEntry], absence: Absence | None
    ) -> Loaded:
        parts = self._parts
        rows = dispatcher.ledger.read()
        now = parts.time.now()
        found = self._recovery.assess(rows, dispatcher.ledger, now, self._reached_at(now))
        if found is not None and found.total:
            parts.emit(events.StateLost(found.kind, parts.options.catch_up_after_loss))
        self._entries.absent.clear()
        read = Reading(entries, rows, absence, cluster_ran=bool(rows))
        reconciled = self._entries.reconcile(LedgerWriter(term, now), read)
        self._claims.load(dispatcher, term)
        resent = self._claims.to_be_resent(rows)
        after_resend = {each.state.id: each for each in reconciled.operations if _waits(each, resent)}
        first = [each for each in reconciled.operations if each.state.id not in after_resend]
        if self._recovery.loss is None:
            parts.shadow.drop_missing(rows, now)
        queue, summary = DueQueue(), LoadSummary()
        self._entries.plan(queue, reconciled, now, resent, summary)
        self._claims.resend_republishable(queue, term, now)
        summary.report(len(queue), parts.emit)
        return Loaded(queue, in_batches(first, parts.options.batch_size), after_resend, reconciled.awaits_read)

    def _reached_at(self, now: datetime) -> datetime | None:
        """Return when this replica first reached the server."""
        since = self._origin.back_at
        return None if since is None else now - timedelta(seconds=self._parts.clock.elapsed() - since)

    def load_changed(
        self, term: Term, dispatcher: Dispatcher, ids: Set[str], queue: DueQueue, *, last: bool
    ) -> Reconciled | None:
        """Bring these entries of the queue up to date, at a cost that does not depend on the others.

        ``last`` is True if no other entry has changed. No loss of state may be under recovery, and
        ``after_resend`` must be empty.

        Returns:
            ``None`` if all entries must be loaded in one part, because of an open claim.

        Raises:
            StoreError: the ledger could not be read.
        """
        parts = self._parts
        rows, writer = dispatcher.ledger.read_some(ids), LedgerWriter(term, parts.time.now())
        # Asked before the entries are read: the store may be read under this term in between.
        absence = parts.source.absence(term)
        entries = parts.source.load(ids)
        ran = bool(rows) or len(queue) > 0
        read = Reading(entries, rows, absence, cluster_ran=ran)  # guard: absence-read-first
        found = self._entries.replace(queue, ids, writer, read, self._changes)
        if found is not None and last:
            self._changes.report(len(queue), parts.emit)
            self._changes = LoadSummary()
        return found

    def drop_old_rows(self, term: Term, dispatcher: Dispatcher, queue: DueQueue) -> Batches:
        """Return the operations that delete rows of entries that were deleted or disabled long ago.

        A load of all entries deletes these rows too, but a long term may have no second load.

        Raises:
            StoreError: the ledger could not be read. The next load of all entries deletes these rows.
        """
        now = self._parts.time.now()
        old = self._entries.absent.take_old(now)
        if not old:
            return Batches()
        writer = LedgerWriter(term, now)
        operations = []
        for entry_id, raw in dispatcher.ledger.read_some(old).items():
            row = LedgerRow.parse(raw)
            if row is not None and is_forgettable(row, now) and queue.get(entry_id) is None:
                operations.append(writer.delete(unscheduled(entry_id, row.base, row), row))
                self._parts.shadow.drop(entry_id)
        return in_batches(operations)


def _waits(each: EntryOperation, resent: Container[str]) -> bool:
    """True if an operation must not replace the row of a claimed occurrence, because that is sent again first."""
    return each.state.id in resent and each.state.entry.celery_entry is not None  # guard: claim-resent-first
