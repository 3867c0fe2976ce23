"""Entries and recurrences for tests of the leader."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import NEVER


@dataclass(frozen=True)
class Every:
    """Recurrence at an interval in seconds, counted from the last instant."""

    seconds: float

    def next_after(self, instant: datetime) -> datetime:
        return instant + timedelta(seconds=self.seconds)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        count = (now - known) // timedelta(seconds=self.seconds)
        return known + count * timedelta(seconds=self.seconds), count


class CeleryEntry:
    """Stand-in for Celery's object of an entry."""

    name = "e"
    task = "task"
    schedule = "schedule"
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


def scheduled(
    entry_id: str = "e", every: float | None = 3600, last_run: datetime = NEVER, **fields: Any
) -> ScheduledEntry:
    """Return an entry that is due each `every` seconds; with None it has no recurrence."""
    recurrence = None if every is None else Every(every)
    return replace(ScheduledEntry(entry_id, CeleryEntry(), recurrence, MisfireRules(), "s", last_run), **fields)


def state_of(entry: ScheduledEntry) -> EntryState:
    """Return the state of an entry at its last run."""
    return EntryState(entry, entry.last_run)
