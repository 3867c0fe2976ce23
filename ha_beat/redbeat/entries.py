"""Entries made from redbeat's records, and the table of them in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from redbeat.decoder import RedBeatJSONDecoder, RedBeatJSONEncoder
from redbeat.schedules import rrule

from ha_beat import events
from ha_beat.errors import HaBeatError
from ha_beat.exception_text import exception_line, printable
from ha_beat.reasons import EntryFault
from ha_beat.redbeat.recurrence import RRule
from ha_beat.redbeat.store import Record
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.occurrence import FOREVER
from ha_beat.schedule.recurrence import Recurrence, recurrence_of
from ha_beat.schedule_sources.signatures import short_digest, signature
from ha_beat.schedule_sources.stored_source import Table


class UnreadableEntry(HaBeatError):
    """Record that can't be scheduled."""


class StoredEntry(ScheduleEntry):
    """Entry of one record. Unlike redbeat's it never writes to Redis.

    Attributes:
        id: Part of the key that names the entry. Its id in the ledger.
        instants: Due instants, ``None`` if they are unknown and the schedule has to be asked.
        stamp: Digest of the run state that a program has set with ``save`` or ``reschedule``, empty for none.
        signature: Digest of the schedule and the stamp.
        run_state: Last run in UTC and number of runs according to the record.
        rules: The entry's own rules, completed by the cluster's. The table sets it.
        since: Last run that a program has set since the entry was read before, or ``None``.
    """

    id: str
    name: str
    instants: Recurrence | None
    stamp: str
    signature: str
    run_state: tuple[datetime | None, int]
    since: datetime | None
    rules: EntryOptions

    @property
    def stored_last_run_at(self) -> datetime | None:
        """Return the last run according to the record."""
        return self.run_state[0]

    @classmethod
    def of(cls, entry_id: str, record: Record, app: Celery) -> StoredEntry | None:
        """Return the entry of a record, ``None`` if it is disabled.

        Raises:
            UnreadableEntry: the definition is not redbeat's.
            Exception: any error of a schedule with impossible values.
        """
        found: Any = json.loads(record.definition, cls=RedBeatJSONDecoder)
        if not isinstance(found, dict) or not isinstance(found.get("task"), str) or not found.get("schedule"):
            raise UnreadableEntry("the definition has no task or no schedule")
        if not found.get("enabled", True):
            return None
        names = ("task", "schedule", "args", "kwargs", "options")
        fields: dict[str, Any] = {name: found.get(name) for name in names}
        entry = cls(name=str(found.get("name") or entry_id), app=app, **fields)
        if not hasattr(entry.schedule, "is_due"):
            raise UnreadableEntry("the schedule is of an unknown kind")
        if not isinstance(entry.options, dict) or not isinstance(entry.kwargs, dict):
            raise UnreadableEntry("options and kwargs must be objects")
        entry.id = entry_id
        entry.instants = RRule(entry.schedule) if isinstance(entry.schedule, rrule) else recurrence_of(entry)
        entry.take_run_state(record)
        entry.signature = f"{signature(entry, entry.instants)}~{entry.stamp}"
        return entry

    def take_run_state(self, record: Record) -> None:
        """Set the run state and the stamp of the record."""
        last, count, self.stamp = run_state_of(record)
        self.run_state = last, count or 0
        self.since = last if count is None else None
        self.last_run_at, self.total_run_count = last, count or 0

    def score(self, last: datetime) -> float:
        """Return the due time after a run as redbeat's score, -1 for never."""
        try:
            due = last if self.instants is None else self.instants.next_after(last)
        except Exception:  # The leader reports it.
            due = last
        return -1.0 if due >= FOREVER else due.timestamp()


def run_state_of(record: Record) -> tuple[datetime | None, int | None, str]:
    """Return the last run, the number of runs and the stamp.

    The number is ``None`` if a program has set the last run: redbeat writes no number when it saves or reschedules.
    """
    stamp = record.stamp.decode("ascii", "replace")
    try:
        meta: Any = json.loads(record.meta or b"{}", cls=RedBeatJSONDecoder)
        last = meta.get("last_run_at")
        at = last.astimezone(UTC) if isinstance(last, datetime) else None
        if at is not None and "total_run_count" not in meta:
            return at, None, short_digest(record.meta.decode("utf-8", "replace"))
        return at, int(meta.get("total_run_count") or 0), stamp
    except Exception:
        # Any program may have written it. The ledger has the run state too.
        return None, 0, stamp


def meta_of(at: datetime, count: int | None = None) -> bytes:
    """Return the run state as redbeat writes it."""
    found: dict[str, Any] = {"last_run_at": at} if count is None else {"last_run_at": at, "total_run_count": count}
    return json.dumps(found, cls=RedBeatJSONEncoder).encode()


class EntryTable(Table):
    """Entries as last read, and all records by key."""

    entries: dict[str, StoredEntry]

    def __init__(
        self, prefix: str, make_entry: Callable[[str, Record], StoredEntry | None], emit: Callable[[events.Event], None]
    ) -> None:
        """``make_entry`` returns ``None`` for a disabled entry. If it raises, the entry is reported and left out."""
        super().__init__(emit)
        self._prefix = prefix
        self._make_entry = make_entry
        self.records: dict[str, Record] = {}

    def id_of(self, key: str) -> str:
        return printable(key.removeprefix(self._prefix))

    def apply(self, records: Mapping[str, Record | None]) -> int:
        """Replace these records. ``None`` removes a record. Return how many entries changed."""
        differing: list[str] = []
        for key, record in records.items():
            before, entry_id = self.records.get(key), self.id_of(key)
            if record is None:
                if before is None:
                    continue
                del self.records[key]
                self.entries.pop(entry_id, None)
            else:
                self.records[key] = record
                if before is not None and not self._differs(entry_id, before, record):
                    continue
                self._replace(entry_id, record)
            differing.append(entry_id)
        self._note_changed(differing)
        return len(differing)

    def ran(self, key: str, record: Record) -> None:
        """Note the run state that was written."""
        before = self.records.get(key)
        if before is not None:
            self.records[key] = replace(before, meta=record.meta, stamp=record.stamp)
            entry = self.entries.get(self.id_of(key))
            if entry is not None:
                last, count, _ = run_state_of(record)
                entry.run_state, entry.since = (last, count or 0), None

    def _differs(self, entry_id: str, before: Record, record: Record) -> bool:
        if before == record:
            return False
        entry = self.entries.get(entry_id)
        if before.definition != record.definition or run_state_of(before)[2] != run_state_of(record)[2]:
            return True
        if entry is not None:
            last, count, _ = run_state_of(record)
            entry.run_state = last, count or 0
        return False

    def _replace(self, entry_id: str, record: Record) -> None:
        before = self.entries.pop(entry_id, None)
        try:
            entry = self._make_entry(entry_id, record)
        except Exception as exc:
            self._emit(events.EntryFailed(entry_id, EntryFault.INVALID, exception_line(exc)))
            return
        if entry is None:
            return
        if before is not None and before.stamp == entry.stamp:
            # Its schedule counts from the edit.
            entry.since = None
        self.entries[entry_id] = entry
