"""Gradual load of a large schedule: the entries that may be due first, then the others between two batches.

An entry enters the due queue once its own row has been read, never before. When all is loaded again within a term, an
entry stays in the queue as it is until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from ha_beat import events
from ha_beat.budget import Budget
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.planner import Absence
from ha_beat.reasons import EntryFault

#: Number of entries above which a schedule is loaded gradually.
LARGE = 1000

#: Entries that are loaded between two batches at first, and the most if Redis answers slowly.
PART, LARGEST_PART = 250, 4000

#: Rows of a page of the ledger.
PAGE = 1000

#: Seconds of loading between two batches.
PART_BUDGET = 0.1


@dataclass(slots=True)
class GradualLoad:
    """Progress of one load. ``soonest`` are ids, ``entries`` the whole schedule, ``rows`` the pages of the ledger.

    ``ran`` is False if the ledger was empty. ``absence`` is as when the schedule was read.
    """

    soonest: deque[str]
    entries: Iterator[ScheduledEntry]
    rows: Iterator[Mapping[str, str]]
    absence: Absence | None
    ran: bool
    emit: Callable[[events.Event], None]
    #: Ids of the entries that are loaded.
    seen: set[str] = field(default_factory=set)
    #: Ids in the ledger.
    recorded: set[str] = field(default_factory=set)
    #: Entries that are far ahead of the clock.
    ahead: list[EntryState] = field(default_factory=list)
    overdue: int = 0
    new: int = 0
    held_back: bool = False
    #: True once all entries are loaded, and rows of others are left.
    all_loaded: bool = False
    _part: int = PART
    _listed: set[str] = field(default_factory=set)
    _put_back: Sequence[ScheduledEntry] = ()

    def take(self, load: Callable[[Set[str]], Iterable[ScheduledEntry]], budget: Budget) -> Sequence[ScheduledEntry]:
        """Return the next entries that are not loaded, none at the end. ``load`` returns those of some ids."""
        found, self._put_back = [entry for entry in self._put_back if entry.id not in self.seen], ()
        while self.soonest and not found:
            ids = [self.soonest.popleft() for _ in range(min(self._part, len(self.soonest)))]
            found = list(load(set(ids) - self.seen))
        return found or self._take_listed(budget)

    def took(self, reading: float, working: float) -> None:
        """Adapt the size of the next part to the seconds that reading the rows of this one took, and the rest of it."""
        if working > 4 * PART_BUDGET:
            self._part = max(self._part // 2, PART)
        elif reading > PART_BUDGET:
            self._part = min(2 * self._part, LARGEST_PART)

    def put_back(self, entries: Sequence[ScheduledEntry]) -> None:
        """Return these entries once more, because their rows could not be read."""
        self._put_back = entries

    def _take_listed(self, budget: Budget) -> Sequence[ScheduledEntry]:
        """Return the next entries of the whole schedule. Report those with a used id."""
        found: list[ScheduledEntry] = []
        for entry in self.entries:
            if entry.id in self._listed:
                self.emit(events.EntryFailed(entry.label, EntryFault.DUPLICATE_ID, entry.id))
                continue
            self._listed.add(entry.id)
            if entry.id not in self.seen:
                found.append(entry)
            if found and (len(found) >= self._part or budget.spent):
                break
        return found
