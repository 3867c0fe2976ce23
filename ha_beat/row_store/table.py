"""Enabled rows in memory, as last read."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ha_beat import events
from ha_beat.reasons import EntryFault
from ha_beat.row_store.backend import Row, RowQueries, Totals, chunks
from ha_beat.row_store.entry import RowEntry
from ha_beat.schedule_sources.stored_source import Table


class RowTable(Table):
    """Entries of the enabled rows, by primary key. The reading thread writes it."""

    entries: dict[str, RowEntry]

    def __init__(
        self, query: RowQueries, make_entry: Callable[[Any], RowEntry], emit: Callable[[events.Event], None]
    ) -> None:
        """If ``make_entry`` raises for a model, the row is reported and left out."""
        super().__init__(emit)
        self._query = query
        self._make_entry = make_entry
        self.expiries = Expiries(self.entries)
        #: Definitions of the rows, including unreadable ones, by primary key.
        self._definitions: dict[Any, tuple[Any, ...]] = {}
        self._key_sum = 0
        self._lock = threading.Lock()
        #: Number of the table at which an entry was removed, by id.
        self._removed: dict[str, int] = {}

    # --- Other threads

    def removed(self) -> dict[str, int]:
        """Return the entries that were disabled or deleted and not armed since, with the number of the table then."""
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
        """Return the primary keys of the rows."""
        return self._definitions.keys()

    @property
    def totals(self) -> Totals:
        """Return the totals of the rows, if their primary keys are numbers."""
        return len(self._definitions), self._key_sum

    def apply(self, rows: Sequence[Row], absent: Iterable[Any], checked_at: datetime | None, now: datetime) -> None:
        """Replace these rows, and remove those with the primary keys ``absent``. Raises the database's errors.

        ``checked_at`` is the time of the last check, which found the rows as they were before; ``None`` at the first.
        """
        differing = {row.pk: row for row in rows if self._definitions.get(row.pk) != row.definition}
        made = self._make(differing)
        # A row may have been disabled or deleted between the two queries.
        gone = [pk for pk in {*absent, *(differing.keys() - made.keys())} if pk in self._definitions]
        for row in rows:
            entry = made[row.pk] if row.pk in made else self.entries.get(row.id)
            if entry is not None:
                entry.update_run_state(row.last_run_at, row.total_run_count, row.date_changed)
                if row.pk in made:
                    entry.mark_edited(row.date_changed, checked_at, now)
        # From here on nothing raises: the table changes as a whole or not at all.
        self._remove([*map(str, gone), *(str(pk) for pk, entry in made.items() if entry is None)])
        for entry in made.values():
            if entry is not None:
                self.entries[entry.id] = entry
                self.expiries.add(entry)
        self._key_sum += sum(map(_number, made.keys() - self._definitions.keys())) - sum(map(_number, gone))
        for pk in gone:
            del self._definitions[pk]
        self._definitions |= {pk: differing[pk].definition for pk in made}
        self._note_changed([*map(str, gone), *map(str, made)])

    def _make(self, differing: Mapping[Any, Row]) -> dict[Any, RowEntry | None]:
        """Make the entries of the enabled ones of these rows. A row that can't be read is reported and has ``None``."""
        made: dict[Any, RowEntry | None] = {}
        for chunk in chunks(list(differing)):
            for pk, model in self._query.models(chunk):
                try:
                    if isinstance(model, Exception):
                        raise model
                    made[pk] = self._make_entry(model)
                except Exception as exc:
                    made[pk] = None
                    self._emit(events.EntryFailed(differing[pk].name, EntryFault.INVALID, str(exc)))
        return made

    def _remove(self, ids: Sequence[str]) -> None:
        """Remove these entries, as part of the change that is noted next."""
        with self._lock:
            self._removed |= dict.fromkeys([entry_id for entry_id in ids if entry_id in self.entries], self.number + 1)
        for entry_id in ids:
            self.entries.pop(entry_id, None)

    def forget_deleted(self) -> None:
        """Forget removed entries whose rows were deleted, so that they do not accumulate on a standby."""
        removed = self._removed.copy()
        for chunk in chunks(list(removed)):
            for entry_id in set(chunk) - self._query.existing(chunk):
                self.forget_removed(entry_id, removed[entry_id])


def _number(pk: Any) -> int:
    return pk if isinstance(pk, int) else 0


class Expiries:
    """Expiries of entries in order of time: a check costs nothing while none is due."""

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
