"""Entries of the settings, as redbeat's records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab
from redbeat.decoder import RedBeatJSONEncoder

from ha_beat import events
from ha_beat.reasons import EntryFault
from ha_beat.redbeat.entries import StoredEntry
from ha_beat.redbeat.store import Record

_FIELDS = ("task", "schedule", "args", "kwargs", "options", "relative")
_STORED = ("name", "task", "args", "kwargs", "options", "schedule")


class StaticEntries:
    """Entries of the settings, with the cleanup of results that Celery adds."""

    def __init__(
        self, app: Celery, make_entry: Callable[[str, Record], StoredEntry | None], emit: Callable[[events.Event], None]
    ) -> None:
        """``make_entry`` raises if an entry can't be scheduled."""
        self._make_entry = make_entry
        self._app = app
        self._emit = emit

    @property
    def names(self) -> set[str]:
        """Return the names of all entries, including those that redbeat can't hold."""
        return set(self._configured())

    def definitions(self) -> dict[str, bytes]:
        """Return the definitions of the entries. One that redbeat can't hold is reported and left out."""
        found: dict[str, bytes] = {}
        for name, configured in self._configured().items():
            try:
                fields = {field: configured[field] for field in _FIELDS if field in configured}
                entry: Any = ScheduleEntry(name=name, app=self._app, **fields)
                stored = {field: getattr(entry, field) for field in _STORED}
                raw = json.dumps({**stored, "enabled": True}, cls=RedBeatJSONEncoder).encode()
                self._make_entry(name, Record(raw))
                found[name] = raw
            except Exception as exc:
                self._emit(events.EntryFailed.raised(name, EntryFault.INVALID, exc))
        return found

    def _configured(self) -> dict[str, Any]:
        conf, found = self._app.conf, {}
        if conf.result_expires and not self._app.backend.supports_autoexpire:
            found["celery.backend_cleanup"] = {
                "task": "celery.backend_cleanup",
                "schedule": crontab("0", "4", "*"),
                "options": {"expires": 12 * 3600},
            }
        return {**found, **conf.beat_schedule}


def digest(definition: bytes) -> str:
    return hashlib.sha256(definition).hexdigest()[:16]
