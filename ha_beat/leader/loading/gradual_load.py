"""Gradual load of a large schedule: first the entries that may be due soon, then the others between two batches.

An entry enters the due queue only after its own row was read. During a reload within a term, each entry stays in the
queue unchanged until it is loaded again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Set

from ha_beat import events
from ha_beat.budget import Budget
from ha_beat.errors import StoreError
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.ledger_writer import LedgerWriter
from ha_beat.leader.loading.entry_loader import Batches, EntryLoader, LoadSummary, Reading, in_batches
from ha_beat.leader.loading.reconcile import absences
from ha_beat.leader.loading.recovery import Recovery
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import Absence
from ha_beat.reasons import EntryFault
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger

#: Entries that are loaded between two batches at first, and the most if Redis answers slowly.
PART, LARGEST_PART = 250, 4000

#: Rows of a page of the ledger.
PAGE = 1000

#: Seconds of loading between two batches.
PART_BUDGET = 0.1


class GradualLoad:
    """One load. It has more than 15 attributes, because all of them last from one part to the next."""

    def __init__(
        self,
        parts: LeaderParts,
        loader: EntryLoader,
        recovery: Recovery,
        ledger: Ledger,
        entries: Iterator[ScheduledEntry],
        absence: Absence | None,
        *,
        cluster_ran: bool,
        reloads: bool,
    ) -> None:
        """``entries`` is the whole schedule, ``absence`` as when it was read. Without ``cluster_ran`` no row exists.

        ``reloads``: the queue holds all entries from an earlier load.
        """
        self._parts = parts
        self._loader = loader
        self._recovery = recovery
        self._ledger = ledger
        self._unread = entries
        self._absence = absence
        self._cluster_ran = cluster_ran
        self.reloads = reloads
        #: Ids that the forecast names. During a reload, entries that are due are in the queue already.
        self._soonest = deque(parts.forecast.take() if parts.forecast is not None and not reloads else ())
        self._pages = ledger.pages(PAGE)
        #: True once all entries are loaded, and only rows of other entries are left.
        self.all_loaded = False
        #: True once the rows of other entries are read, too.
        self.finished = False
        #: True if some entries wait until the schedule is read under this term.
        self.awaits_read = False
        self._summary = LoadSummary()
        #: Ids of the entries that are loaded, of those that were taken from ``_unread``, and in the ledger.
        self._seen: set[str] = set()
        self._listed: set[str] = set()
        self._recorded: set[str] = set()
        #: Entries whose rows could not be read.
        self._put_back: Sequence[ScheduledEntry] = ()
        self._part = PART

    def note_loaded(self, ids: Set[str], *, awaits_read: bool) -> None:
        """Note that these entries were loaded separately, because they have changed."""
        self._seen |= ids
        self.awaits_read |= awaits_read

    def load_part(self, term: Term, queue: DueQueue) -> Batches | None:
        """Load the next entries into the queue, and the remaining rows of the ledger at the end.

        Returns:
            Operations to submit before due entries; ``None`` if all entries must be loaded in one part, because the
            ledger is behind in one of them or has an open claim.

        Raises:
            StoreError: the ledger could not be read. The next call tries again.
        """
        parts, now = self._parts, self._parts.time.now()
        began = parts.clock.elapsed()
        entries = self._take(parts.pace.begin())
        if not entries:
            self.all_loaded = True
            return self._load_page(LedgerWriter(term, now), queue)
        wanted = {entry.id for entry in entries}
        asked = parts.clock.elapsed()
        try:
            rows = self._ledger.read_some(wanted)
        except StoreError:
            self._put_back = entries  # guard: gradual-part-unread
            raise
        answered = parts.clock.elapsed()
        if not self._recovery.settled and parts.shadow.lost(rows, now, wanted):  # guard: gradual-row-behind
            return None
        read = Reading(entries, rows, self._absence, self._cluster_ran)
        found = self._loader.replace(queue, wanted, LedgerWriter(term, now), read, self._summary)
        if found is None:
            return None
        self.note_loaded(wanted, awaits_read=found.awaits_read)
        self._adapt(answered - asked, parts.clock.elapsed() - answered + asked - began)
        return in_batches(found.operations)

    def _take(self, budget: Budget) -> Sequence[ScheduledEntry]:
        """Return the next entries that are not loaded, none at the end."""
        found, self._put_back = [entry for entry in self._put_back if entry.id not in self._seen], ()
        while self._soonest and not found:
            ids = [self._soonest.popleft() for _ in range(min(self._part, len(self._soonest)))]
            found = list(self._parts.source.load(set(ids) - self._seen))
        return found or self._take_unread(budget)

    def _take_unread(self, budget: Budget) -> Sequence[ScheduledEntry]:
        """Return the next entries of the whole schedule. Report those with a used id."""
        found: list[ScheduledEntry] = []
        for entry in self._unread:
            if entry.id in self._listed:
                self._parts.emit(events.EntryFailed(entry.label, EntryFault.DUPLICATE_ID, entry.id))
                continue
            self._listed.add(entry.id)
            if entry.id not in self._seen:
                found.append(entry)
            if found and (len(found) >= self._part or budget.spent):
                break
        return found

    def _adapt(self, reading: float, working: float) -> None:
        """Adapt the size of the next part to the seconds for reading the rows of this one and for the other work."""
        if working > 4 * PART_BUDGET:
            self._part = max(self._part // 2, PART)
        elif reading > PART_BUDGET:
            self._part = min(2 * self._part, LARGEST_PART)

    def _load_page(self, writer: LedgerWriter, queue: DueQueue) -> Batches:
        """Read a page of the ledger, for rows of entries that this replica's schedule lacks. Finish after the last."""
        try:
            page = next(self._pages, None)
        except StoreError:
            self._pages = self._ledger.pages(PAGE)
            raise
        if page is None:
            self._finish(writer, queue)
            return Batches()
        self._recorded |= page.keys()
        others = {entry: raw for entry, raw in page.items() if entry not in self._seen}
        shadow, absence = self._parts.shadow, self._absence
        shadow.learn_rows(others)
        if absence is None:
            return Batches()
        if not absence.certain:
            self.awaits_read |= bool(others)
            return Batches()
        operations = absences(others, shadow, None, writer)
        self._loader.absent.note(others, operations)
        return in_batches(operations)

    def _finish(self, writer: LedgerWriter, queue: DueQueue) -> None:
        for state in list(queue.entries()):
            if state.id not in self._seen:
                queue.drop(state)
        self._parts.shadow.drop_missing(self._recorded, writer.now)
        self._recovery.found_intact()
        self._summary.report(len(queue), self._parts.emit)
        self.finished = True
