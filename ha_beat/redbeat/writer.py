"""Writing to redbeat's Redis, by the leader: run state, entries of the settings, and entries that Redis has lost.

Every write is idempotent. Entries and the mark are written only if no later leader has set the mark.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab
from redbeat.decoder import RedBeatJSONEncoder

from ha_beat import events
from ha_beat.reasons import EntryFault, Verdict
from ha_beat.redbeat.entries import EntryTable, meta_of, run_state_of
from ha_beat.redbeat.reader import EntryReader
from ha_beat.redbeat.store import Mark, Record, RedBeatStore
from ha_beat.schedule_sources.stored_source import CLOCK_TOLERANCE
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow

_RAN = frozenset({Verdict.ENQUEUED, Verdict.UNCERTAIN})


class EntryWriter:
    """Writer of one replica. The main loop queues run state; one thread writes."""

    def __init__(
        self,
        app: Celery,
        store: RedBeatStore,
        table: EntryTable,
        *,
        now: Callable[[], datetime],
        emit: Callable[[events.Event], None],
        began_ms: int,
    ) -> None:
        """``now`` returns the scheduling time; ``began_ms`` is when this process started, in ms of the Unix epoch."""
        self._app = app
        self._store = store
        self._table = table
        self._now = now
        self._emit = emit
        self._began_ms = began_ms
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[datetime, int]] = {}
        #: Fields of the mark that a leader needs again after a loss.
        self._fields: dict[str, str] = {}
        self._restored = 0

    # --- Run state

    def record(self, entry_id: str, row: LedgerRow) -> None:
        """Queue the run state of a ledger row that records a run. Any thread may call it."""
        if row.verdict in _RAN:
            with self._lock:
                self._runs[entry_id] = row.base, row.run_count

    def record_missing(self, ledger: Mapping[str, str]) -> None:
        """Queue the runs in the ledger's rows that a previous leader did not write."""
        for entry_id, entry in self._table.entries.copy().items():
            row = LedgerRow.parse(ledger.get(entry_id, ""))
            if row is not None and row.run_count > entry.run_state[1] and row.signature == entry.signature:
                self.record(entry_id, row)

    def write(self) -> None:
        """Write the queued run state; keep it if that fails. Raises ``StoreError``."""
        with self._lock:
            runs, self._runs = self._runs, {}
        try:
            waiting = self._write(runs)
        except BaseException:
            waiting = runs
            raise
        finally:
            with self._lock:
                self._runs = waiting | self._runs

    def _write(self, runs: Mapping[str, tuple[datetime, int]]) -> dict[str, tuple[datetime, int]]:
        """Write them, and return those whose record differs from the known one."""
        latest = self._now() + CLOCK_TOLERANCE
        new: dict[str, tuple[Record, float]] = {}
        expected: dict[str, bytes] = {}
        for entry_id, (at, count) in runs.items():
            key, entry = self._store.keys.entry(entry_id), self._table.entries.get(entry_id)
            known = self._table.records.get(key)
            if entry is None or known is None:
                continue
            last, stored, _ = run_state_of(known)
            if last is not None and at <= last <= latest and stored is not None:
                continue
            expected[key] = known.meta
            record = Record(known.definition, meta_of(at, max(count, stored or 0)), entry.stamp.encode())
            new[key] = record, entry.score(at)
        differing = self._store.record(new, expected)
        waiting = {}
        for key, meta in differing.items():
            known = self._table.records.get(key)
            # Another program has set it. The reader sees that, unless it was only another run.
            if meta is not None and known is not None and b'"total_run_count"' in meta:
                self._table.ran(key, Record(known.definition, meta, known.stamp))
                waiting[self._table.id_of(key)] = runs[self._table.id_of(key)]
        for key in new.keys() - differing.keys():
            self._table.ran(key, new[key][0])
        return waiting

    # --- Mark

    def begin_term(self, term: Term, reader: EntryReader) -> bool:
        """Set the mark and write the changed entries of the settings. Return False if a later leader has set it."""
        known = reader.mark
        fields = self._store.set_mark(term.epoch, known.id if known else uuid.uuid4().hex)
        if fields is None:
            return False
        reader.mark = Mark(fields["id"], max(int(fields.get("seq") or 0), known.seq if known else 0))
        self._fields = {name: fields[name] for name in ("statics", "statics_by") if name in fields}
        return self._write_statics(term)

    def note_change(self, term: Term, reader: EntryReader) -> None:
        """Count a change of the schedule in the mark, so that an older copy of the data is known as such."""
        if reader.mark is None or reader.lost:
            return
        seq = reader.mark.seq + 1
        if self._store.set_mark(term.epoch, reader.mark.id, seq=str(seq)) is not None:
            reader.mark = Mark(reader.mark.id, seq)

    def restore(self, term: Term, reader: EntryReader) -> None:
        """Write the entries that Redis has lost, as they were last read. A later leader continues what is unfinished.

        Raises ``StoreError``.
        """
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
        if not self._store.note_statics(term.epoch, json.loads(self._fields.get("statics") or "{}"), ()):
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

    # --- Entries of the settings

    def _write_statics(self, term: Term) -> bool:
        """Write the entries of the settings that differ from those last written, and delete those that are gone.

        A replica that started before the last writer does not overwrite them.
        """
        written: dict[str, str] = json.loads(self._fields.get("statics") or "{}")
        if self._began_ms < int(self._fields.get("statics_by") or 0):
            return True
        definitions, digests = self._statics()
        changed = {name: raw for name, raw in definitions.items() if written.get(name) != digests[name]}
        gone = (self._store.statics() | written.keys()) - self._configured()
        now = self._now()
        records = {
            self._store.keys.entry(name): (Record(raw, meta_of(now)), now.timestamp()) for name, raw in changed.items()
        }
        if self._store.save(term.epoch, records, replace=True) is None:
            return False
        if (changed or gone) and not self._store.note_statics(term.epoch, changed, sorted(gone)):
            return False
        self._fields = {"statics": json.dumps(digests), "statics_by": str(self._began_ms)}
        return self._store.set_mark(term.epoch, "", **self._fields) is not None

    def _configured(self) -> set[str]:
        return {*self._app.conf.beat_schedule, *_default_entries(self._app)}

    def _statics(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return the settings' entries as definitions, and their digests. One that redbeat can't hold is left out."""
        definitions: dict[str, bytes] = {}
        for name, configured in {**_default_entries(self._app), **self._app.conf.beat_schedule}.items():
            try:
                entry: Any = ScheduleEntry(name=name, app=self._app, **_fields_of(configured))
                found = {field: getattr(entry, field) for field in ("name", "task", "args", "kwargs", "options")}
                raw = json.dumps(
                    {**found, "schedule": entry.schedule, "enabled": True}, cls=RedBeatJSONEncoder
                ).encode()
                self._table.make_entry(name, Record(raw))
                definitions[name] = raw
            except Exception as exc:
                self._emit(events.EntryFailed.raised(name, EntryFault.INVALID, exc))
        return definitions, {name: hashlib.sha256(raw).hexdigest()[:16] for name, raw in definitions.items()}


def _fields_of(configured: Any) -> dict[str, Any]:
    return {
        name: configured[name]
        for name in ("task", "schedule", "args", "kwargs", "options", "relative")
        if name in configured
    }


def _default_entries(app: Celery) -> dict[str, Any]:
    """Return the cleanup of results that Celery adds."""
    if not app.conf.result_expires or app.backend.supports_autoexpire:
        return {}
    return {
        "celery.backend_cleanup": {
            "task": "celery.backend_cleanup",
            "schedule": crontab("0", "4", "*"),
            "options": {"expires": 12 * 3600},
        }
    }
