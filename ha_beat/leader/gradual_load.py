"""Gradual load of a large schedule: the entries that may be due first, then the others between two batches.

An entry enters the due queue once its own row has been read, never before. Until then it is not dispatched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ha_beat import events
from ha_beat.budget import Budget
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.reconcile import Absence
from ha_beat.reasons import EntryFault

#: Number of entries above which a schedule is loaded gradually.
LARGE = 1000

#: Entries and rows that are loaded between two batches.
PART = 250

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
    overdue: int = 0
    new: int = 0
    _listed: set[str] = field(default_factory=set)

    def take_soonest(self) -> set[str]:
        """Return the ids of the next entries that may be due first, none if all were returned."""
        found: set[str] = set()
        while self.soonest and len(found) < PART:
            entry_id = self.soonest.popleft()
            if entry_id not in self.seen:
                found.add(entry_id)
        return found

    def take_entries(self, budget: Budget) -> Sequence[ScheduledEntry]:
        """Return the next entries of the schedule that are not loaded, none at the end. Report those with a used id."""
        found: list[ScheduledEntry] = []
        for entry in self.entries:
            if entry.id in self._listed:
                self.emit(events.EntryFailed(entry.label, EntryFault.DUPLICATE_ID, entry.id))
                continue
            self._listed.add(entry.id)
            if entry.id not in self.seen:
                found.append(entry)
            if found and (len(found) >= PART or budget.spent):
                break
        return found
