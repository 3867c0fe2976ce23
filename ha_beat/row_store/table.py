"""Enabled rows as last read, in memory."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ha_beat import events
from ha_beat.reasons import EntryFault
from ha_beat.row_store.backend import Row, Totals
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.run_state import chunks
from ha_beat.schedule_sources.stored_source import Table


class RowTable(Table):
    """Entries of the enabled rows, by primary key. The reading thread writes it."""

    entries: dict[str, RowEntry]

    def __init__(
        self,
        models: Callable[[Sequence[Any]], Iterable[tuple[Any, Any]]],
        make_entry: Callable[[Any], RowEntry],
        emit: Callable[[events.Event], None],
    ) -> None:
        """Create an empty table.

        Args:
            models: Return primary key and model, or an exception, of each of these rows.
            make_entry: Make the entry of a row. An exception leaves the row out.
            emit: Receives the events.
        """
        super().__init__(emit)
        self._models = models
        self._make_entry = make_entry
        self.expiries = Expiries(self.entries)
        #: Definitions of the rows, including unreadable ones, by primary key as in the database.
        self._definitions: dict[Any, tuple[Any, ...]] = {}
        self._key_sum = 0
        self._lock = threading.Lock()
        self._removed: dict[str, int] = {}

    # --- Other threads

    def removed(self) -> dict[str, int]:
        """Return the entries that were disabled or deleted and not armed since, with the number at that time."""
        with self._lock:
            return dict(self._removed)

    def removed_at(self, entry_id: str) -> int | None:
        """Return the number at which this entry was disabled or deleted; ``None`` if it was armed since."""
        return self._removed.get(entry_id)

    def forget_removed(self, entry_id: str, number: int) -> None:
        """Forget a removal that the ledger has recorded, unless the entry was removed again later."""
        with self._lock:
            if self._removed.get(entry_id) == number:
                del self._removed[entry_id]

    # --- The reading thread

    @property
    def known(self) -> Collection[Any]:
        """Return the primary keys of the rows as last read."""
        return self._definitions.keys()

    @property
    def totals(self) -> Totals:
        """Return the totals of the known rows, if their primary keys can be added up."""
        return len(self._definitions), self._key_sum

    def apply(self, rows: Sequence[Row], absent: Iterable[Any], checked_at: datetime | None, now: datetime) -> None:
        """Replace these rows, and remove those that are ``absent``. Raises the database's errors.

        ``checked_at`` is the time of the last check, which found the rows as they were before; ``None`` at the first.
        """
        differing = {row.pk: row for row in rows if self._definitions.get(row.pk) != row.definition}
        found = self._make(differing) if differing else {}
        changed = {pk: row for pk, row in differing.items() if pk in found}
        made = {pk: entry for pk, entry in found.items() if entry is not None}
        number = self.number + 1
        # A row may have been disabled or deleted between the two queries.
        gone = [pk for pk in {*absent, *(differing.keys() - found.keys())} if pk in self._definitions]
        lost = [str(pk) for pk in changed if pk not in made and str(pk) in self.entries]
        for row in rows:
            entry = made.get(row.pk) or (None if row.pk in changed else self.entries.get(row.id))
            if entry is not None:
                entry.update_run_state(row.last_run_at, row.total_run_count, row.date_changed)
        for pk, entry in made.items():
            entry.mark_edited(changed[pk].date_changed, checked_at, now)
        with self._lock:
            self._removed |= dict.fromkeys([*(str(pk) for pk in gone if str(pk) in self.entries), *lost], number)
        for entry_id in [*map(str, gone), *lost]:
            self.entries.pop(entry_id, None)
        added = [pk for pk in changed if pk not in self._definitions]
        self._key_sum += sum(pk for pk in added if isinstance(pk, int)) - sum(pk for pk in gone if isinstance(pk, int))
        for pk in gone:
            del self._definitions[pk]
        for entry in made.values():
            self.entries[entry.id] = entry
            self.expiries.add(entry)
        self._definitions |= {pk: row.definition for pk, row in changed.items()}
        self._note_changed([*map(str, gone), *map(str, changed)])

    def _make(self, changed: Mapping[Any, Row]) -> dict[Any, RowEntry | None]:
        """Make the entries of those of the rows that are enabled. One that can't be read is reported, and ``None``."""
        made: dict[Any, RowEntry | None] = {}
        for chunk in chunks(list(changed)):
            for pk, model in self._models(chunk):
                try:
                    if isinstance(model, Exception):
                        raise model
                    made[pk] = self._make_entry(model)
                except Exception as exc:
                    made[pk] = None
                    self._emit(events.EntryFailed(changed[pk].definition[0], EntryFault.INVALID, str(exc)))
        return made

    def forget_deleted(self, existing: Callable[[Sequence[str]], set[str]]) -> None:
        """Forget removed entries whose rows were deleted, so that they do not accumulate on a standby."""
        removed = self._removed.copy()
        for chunk in chunks(list(removed)):
            for entry_id in set(chunk) - existing(chunk):
                self.forget_removed(entry_id, removed[entry_id])


class Expiries:
    """Expiries of entries in order of time, so that a check costs nothing while none is due."""

    def __init__(self, entries: Mapping[str, RowEntry]) -> None:
        """``entries`` has the current entry of each id."""
        self._entries = entries
        self._lock = threading.Lock()
        self._heap: list[tuple[datetime, str]] = []
        self._due: set[str] = set()

    def add(self, entry: RowEntry) -> None:
        if entry.expires is not None:
            with self._lock:
                heapq.heappush(self._heap, (entry.expires, entry.id))

    def due(self, now: datetime) -> list[str]:
        """Return the entries that have expired. Any thread may call it."""
        with self._lock:
            while self._heap and self._heap[0][0] <= now:
                self._due.add(heapq.heappop(self._heap)[1])
            self._due = {entry_id for entry_id in self._due if self._expired(entry_id, now)}
            return list(self._due)

    def _expired(self, entry_id: str, now: datetime) -> bool:
        entry = self._entries.get(entry_id)
        return entry is not None and entry.expires is not None and entry.expires <= now
