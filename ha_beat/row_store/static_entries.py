"""Entries of the settings in a schedule of rows: the leader writes the changed ones to their rows.

The stores' own schedulers overwrite these rows at each start of beat, including edits, and restore deleted ones. Here
an entry is written only if its definition differs from the one that was last written to this database. A replica that
started before the last writer overwrites nothing, so the new settings win in a rolling deploy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from celery import Celery
from celery.schedules import crontab, maybe_schedule, schedule, solar

from ha_beat import events
from ha_beat.beat_loop import Runtime
from ha_beat.reasons import Duty, EntryFault
from ha_beat.row_store.backend import DatabaseFault, Definition, RowStore, StaticRows
from ha_beat.row_store.entry import UnreadableRow, misfire_headers
from ha_beat.schedule.entry_options import KEY
from ha_beat.store.lease import Term
from ha_beat.store.scripts import whole

logger = logging.getLogger("ha_beat")

#: Classes of schedules that a row can hold. A subclass may be due at other times.
_KINDS = frozenset({schedule, crontab, solar})

#: Options that a row of each store can hold.
OPTIONS = frozenset({"queue", "exchange", "routing_key", "priority", "headers", "expire_seconds"})


def static_entries(app: Celery) -> dict[str, Definition]:
    """Return the entries of the settings, and the cleanup of results that the stores' own schedulers add."""
    found: dict[str, Definition] = {}
    if app.conf.result_expires:
        found["celery.backend_cleanup"] = {
            "task": "celery.backend_cleanup",
            "schedule": crontab("0", "4", "*"),
            "options": {"expire_seconds": 12 * 3600},
        }
    return {**found, **app.conf.beat_schedule}


def digest(definition: Definition) -> str:
    """Return a digest of the definition, the same in every process."""
    source: Any = maybe_schedule(definition["schedule"])
    # The time zone of a crontab is part of its row, and can change with a setting alone.
    zone = str(source.tz) if isinstance(source, crontab) else ""
    described = (type(source).__qualname__, repr(source), str(getattr(source, "run_every", "")), zone)
    rest = {name: value for name, value in definition.items() if name != "schedule"}
    text = json.dumps([described, rest], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Mark(NamedTuple):
    """Note in the ledger on an entry that was written to its row."""

    #: Digest of the definition.
    digest: str
    #: Start time of the writer in ms since the Unix epoch.
    began_ms: int
    #: Identity of the database.
    database: str

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Return the mark of a note. Missing parts are empty, and a malformed time is 0."""
        written, began_ms, database = (*text.split(" "), "", "")[:3]
        return cls(written, whole(began_ms), database)

    def __str__(self) -> str:
        return " ".join(map(str, self))

    def needs_write(self, last: Mark | None, *, has_row: bool) -> bool:
        """True if the entry has to be written. This is its present mark, and ``last`` is that of the last write.

        An unchanged entry without a row was deleted by a person, unless the database is new.
        """
        if last is None or not last.digest:
            return True
        if not has_row and (not self.database or self.database != last.database):
            return True
        return last.digest != self.digest and self.began_ms >= last.began_ms


def write_static_entries(app: Celery, store: RowStore, runtime: Runtime, term: Term, *, began_ms: int) -> None:
    """Write the changed entries, and note in the ledger which definitions were written.

    ``began_ms`` is this process' start time. Raises the database's errors and ``StoreError``.
    """
    definitions = static_entries(app)
    notes = {name: f"static:{name}" for name in definitions}
    known = runtime.ledger.notes(list(notes.values()))
    marks = {name: Mark.parse(known[note]) for name, note in notes.items() if note in known}
    progress = partial(runtime.duties.progressed, Duty.WRITE_ROWS)
    written = write_changed(definitions, marks, store, began_ms, runtime.events.emit, progress)
    if written:
        runtime.ledger.write_notes(term, {notes[name]: str(mark) for name, mark in written.items()})


def write_changed(
    definitions: Mapping[str, Definition],
    marks: Mapping[str, Mark],
    store: RowStore,
    began_ms: int,
    emit: Callable[[events.Event], None],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Mark]:
    """Write the entries that need it, and return their new marks by name. ``marks`` are those of the last writes.

    An entry that a row can't hold is reported and left out. Raises the database's other errors.
    """
    identity, present = store.static.present(list(definitions))
    written: list[str] = []
    for name, definition in definitions.items():
        has_row = name in present
        try:
            mark = Mark(digest(definition), began_ms, identity)
            if mark.needs_write(marks.get(name), has_row=has_row):
                _write(store.static, name, definition)
                written.append(name)
            elif not has_row:
                logger.info(
                    "Entry %s was deleted in the database: not written until the settings change",
                    name,
                    extra={"action": "static_entry_deleted", "entry": name},
                )
        except Exception as exc:
            if store.database.fault(exc) not in (None, DatabaseFault.ROW):
                raise
            emit(events.EntryFailed.raised(name, EntryFault.INVALID, exc))
        progress()
    if written:
        # A database without rows may have had no identity.
        identity, _ = store.static.present(())
    return {name: Mark(digest(definitions[name]), began_ms, identity) for name in written}


def _write(rows: StaticRows, name: str, definition: Definition) -> None:
    dropped = rows.write(name, definition)
    logger.info(
        "Wrote entry %s of the settings to the database", name, extra={"action": "static_entry_written", "entry": name}
    )
    if dropped:
        logger.warning(
            "Entry %s runs without these options of the settings, which a row can't hold: %s",
            name,
            ", ".join(dropped),
            extra={"action": "static_options_dropped", "entry": name, "options": dropped},
        )


def row_schedule(value: Any, kinds: Collection[type]) -> Any:
    """Return the schedule of an entry. ``kinds`` are the store's own classes of schedules.

    Raises:
        UnreadableRow: a row can't hold the schedule. It would run by the rules of its base class.
    """
    source: Any = maybe_schedule(value)
    if type(source) not in {*_KINDS, *kinds}:
        raise UnreadableRow(f"a row can't hold a schedule of the class {type(source).__qualname__}")
    return source


def microseconds_of(source: Any) -> int | None:
    """Return the microseconds of an interval that is not in whole seconds, which the stores would truncate."""
    every = getattr(source, "run_every", None)
    return every // timedelta(microseconds=1) if isinstance(every, timedelta) and every.microseconds else None


def unpacked(definition: Definition, held: Collection[str] = OPTIONS) -> tuple[dict[str, Any], list[str]]:
    """Return the entry as arguments of the store's ``_unpack_fields``, and the names of options that a row can't hold.

    ``held`` are the options that a row can hold. The entry's own rules go into its headers.
    """
    entry = dict(definition)
    options = dict(entry.get("options") or {})
    own = options.pop(KEY, None)
    expires = options.pop("expires", None)
    if isinstance(expires, datetime):
        entry["expires"] = expires
    elif expires is not None:
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
        options["expire_seconds"] = math.ceil(seconds)
    dropped = sorted(options.keys() - held)
    if entry.get("relative") or getattr(entry["schedule"], "relative", False):
        dropped.append("relative")
    if own:
        options["headers"] = misfire_headers(options.get("headers") or {}, own)
    return {**entry, "options": options}, dropped
