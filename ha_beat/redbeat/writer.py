"""Writing of entries to redbeat's Redis, by the leader: those of the settings, and those that Redis has lost.

Every write is idempotent. Entries and the mark are written only if no later leader has set the mark.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import datetime

from ha_beat import events
from ha_beat.redbeat.entries import EntryTable, meta_of, run_state_of
from ha_beat.redbeat.reader import EntryReader
from ha_beat.redbeat.static_entries import StaticEntries, digest
from ha_beat.redbeat.store import Mark, Record, RedBeatStore
from ha_beat.store.lease import Term


class EntryWriter:
    """Writer of entries and of the mark, used by one thread. All methods raise ``StoreError``."""

    def __init__(
        self,
        store: RedBeatStore,
        table: EntryTable,
        statics: StaticEntries,
        *,
        now: Callable[[], datetime],
        emit: Callable[[events.Event], None],
        began_ms: int,
    ) -> None:
        """``now`` returns the scheduling time; ``began_ms`` is when this process started, in ms of the Unix epoch."""
        self._store = store
        self._table = table
        self._statics = statics
        self._now = now
        self._emit = emit
        self._began_ms = began_ms
        #: Fields of the mark that a leader needs again after a loss.
        self._fields: dict[str, str] = {}
        self._restored = 0

    def begin_term(self, term: Term, reader: EntryReader) -> bool:
        """Set the mark and write the entries of the settings. Return False if a later leader has set the mark."""
        known = reader.mark
        fields = self._store.set_mark(term.epoch, known.id if known else uuid.uuid4().hex)
        if fields is None:
            return False
        reader.mark = Mark(fields["id"], max(int(fields.get("seq") or 0), known.seq if known else 0))
        self._fields = {name: fields[name] for name in ("statics", "statics_by") if name in fields}
        return self._write_statics(term)

    def note_change(self, term: Term, reader: EntryReader) -> None:
        """Count a change of the schedule in the mark. An older copy of the data then shows by its count."""
        if reader.mark is None or reader.lost:
            return
        seq = reader.mark.seq + 1
        if self._store.set_mark(term.epoch, reader.mark.id, seq=str(seq)) is not None:
            reader.mark = Mark(reader.mark.id, seq)

    def restore(self, term: Term, reader: EntryReader) -> None:
        """Write the entries that Redis has lost, as last read. A later leader continues an unfinished restoring."""
        known = reader.mark
        if known is None:
            return
        seq = known.seq + 1
        if self._store.set_mark(term.epoch, known.id, seq=str(seq), restoring="1", **self._fields) is None:
            return
        records = {key: (record, self._score(key, record)) for key, record in self._table.records.items()}
        written = self._store.save(term.epoch, records, replace=False)
        if written is None:
            return
        self._restored += sum(written.values())
        if not self._store.note_statics(term.epoch, self._written_statics(), ()):
            return
        if self._store.set_mark(term.epoch, known.id, seq=str(seq + 1), restoring="") is None:
            return
        reader.mark, reader.lost = Mark(known.id, seq + 1), False
        self._emit(events.ScheduleRestored(self._restored, len(records)))
        self._restored = 0

    def _score(self, key: str, record: Record) -> float:
        entry = self._table.entries.get(self._table.id_of(key))
        last = run_state_of(record)[0]
        return 0.0 if entry is None or last is None else entry.score(last)

    def _write_statics(self, term: Term) -> bool:
        """Write the entries of the settings that differ from those last written, and delete removed ones.

        A replica that started before the last writer does not overwrite its entries. Return False if a later leader has
        set the mark.
        """
        if self._began_ms < int(self._fields.get("statics_by") or 0):
            return True
        written, definitions = self._written_statics(), self._statics.definitions()
        digests = {name: digest(raw) for name, raw in definitions.items()}
        changed = {name: raw for name, raw in definitions.items() if written.get(name) != digests[name]}
        removed = (self._store.statics() | written.keys()) - self._statics.names
        now = self._now()
        records = {
            self._store.keys.entry(name): (Record(raw, meta_of(now)), now.timestamp()) for name, raw in changed.items()
        }
        if self._store.save(term.epoch, records, replace=True) is None:
            return False
        if (changed or removed) and not self._store.note_statics(term.epoch, changed, sorted(removed)):
            return False
        self._fields = {"statics": json.dumps(digests), "statics_by": str(self._began_ms)}
        return self._store.set_mark(term.epoch, "", **self._fields) is not None

    def _written_statics(self) -> dict[str, str]:
        """Return the digests of the entries of the settings as last written, by name."""
        found: dict[str, str] = json.loads(self._fields.get("statics") or "{}")
        return found
