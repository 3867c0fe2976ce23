"""Reading of the entries, at a cost that does not grow with their number.

Redis reports the changed keys, and their entries are read. Without these reports each turn compares the sorted set and
reads one page of entries. All entries are read when a term begins, after a gap in the reports, and every five minutes.
"""

from __future__ import annotations

from collections.abc import Callable

from ha_beat.clock import Clock
from ha_beat.redbeat.entries import EntryTable
from ha_beat.redbeat.invalidations import Invalidations
from ha_beat.redbeat.store import PAGE, Mark, RedBeatStore
from ha_beat.store.redis_errors import mapped_redis_errors

#: Seconds between complete reads if Redis reports changes.
_BACKSTOP = 300.0


class EntryReader:
    """Reader of the entries, used by one thread.

    If Redis has lost its data (:meth:`_lost`), the lost entries stay in the table until a leader restores them.
    """

    def __init__(
        self,
        store: RedBeatStore,
        table: EntryTable,
        changes: Invalidations | None,
        clock: Clock,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``progress`` is called after each page."""
        self._store = store
        self._progress = progress
        self.table = table
        self._changes = changes
        self._clock = clock
        #: Number of complete reads.
        self.complete_reads = 0
        #: The mark as last seen while no data was lost.
        self.mark: Mark | None = None
        #: True while lost entries wait to be restored.
        self.lost = False
        #: True if the mark does not count the last change of entries yet.
        self.changed = False
        #: See :class:`~ha_beat.redbeat.store.Reading`.
        self.lock_ms = -2
        #: Keys that were reported and not read yet.
        self._reported: set[str] = set()
        self._scores: dict[str, float] = {}
        self._rest: list[str] = []
        self._full_at = 0.0

    def begin_full_read(self) -> None:
        """Read all entries in the next turn."""
        self._full_at = 0.0

    def turn(self) -> None:
        """Read what has changed. Raises ``StoreError``."""
        with mapped_redis_errors():
            reported = self._changes.take() if self._changes is not None else None
        reports = self._changes is not None and self._changes.active
        if reports and reported is None:
            # Unlike a single read, a complete one is repeated until it succeeds.
            self.begin_full_read()
        self._reported |= reported or set()
        now = self._clock.elapsed()
        if not self.complete_reads or now >= self._full_at:
            self._reported.clear()
            self._read_all()
            self._full_at = now + _BACKSTOP
        elif reports:
            keys = self._store.keys
            self._read(sorted(self._reported - {keys.schedule, keys.statics, keys.mark, keys.lock}), check=True)
            self._reported.clear()
        else:
            self._read_some()

    def _read_all(self) -> None:
        members = self._store.members()
        self._read(list(members))
        self._read(list(self.table.records.keys() - members.keys()), check=True)
        self._scores = members
        self.complete_reads += 1

    def _read_some(self) -> None:
        """Read the entries whose score has changed, and the next page of the others."""
        members = self._store.members()
        moved = [key for key, score in members.items() if self._scores.get(key) != score]
        unlisted = list(self.table.records.keys() - members.keys())
        rest = self._rest or list(members)
        self._read(list(dict.fromkeys([*moved, *(key for key in rest[:PAGE] if key in members)])))
        if unlisted:
            self._read(unlisted, check=True)
        self._scores, self._rest = members, rest[PAGE:]

    def _read(self, keys: list[str], *, check: bool = False) -> None:
        """Read these entries. ``check`` is true if some may be missing in the sorted set."""
        for start in range(0, max(len(keys), 1), PAGE):
            page = keys[start : start + PAGE]
            reading = self._store.read(page, page if check else ())
            self.lock_ms = reading.lock_ms
            lost = self._lost(reading.mark)
            if lost:
                records = {key: record for key, record in reading.records.items() if record is not None}
                self.changed |= self.table.apply(records) > 0
            else:
                self.mark = reading.mark or self.mark
                self.changed |= self.table.apply(reading.records) > 0
                if self.lost:
                    # The table still has the entries that were lost.
                    self.begin_full_read()
            self.lost = lost
            self._progress()

    def _lost(self, mark: Mark | None) -> bool:
        """True if Redis lacks data that this replica has seen: the mark is missing, older, or a leader is restoring."""
        known = self.mark
        if known is None:
            return False
        if mark is None:  # guard: redbeat-mark-lost
            return True
        return mark.id == known.id and (mark.seq < known.seq or mark.restoring)
