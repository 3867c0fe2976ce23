"""Entries of the settings in a schedule of rows: the leader writes changed entries to their rows.

The stores' own schedulers overwrite these rows at each start of beat, including edits, and restore those that were
deleted. Here an entry is written if its definition differs from the one last written to this database. A
replica that started before the last writer does not overwrite it: in a rolling deploy the new settings win.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.schedules import crontab, maybe_schedule, schedule, solar

from ha_beat import events
from ha_beat.reasons import EntryFault
from ha_beat.row_store.backend import Database, DatabaseFault, Definition, StaticRows
from ha_beat.row_store.entry import UnreadableRow, misfire_headers
from ha_beat.schedule.entry_options import KEY
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger

logger = logging.getLogger("ha_beat")

#: Classes of schedules that a row holds. A subclass may be due at other times.
_KINDS = frozenset({schedule, crontab, solar})

#: Options of an entry that a row of each store holds.
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
    described = (type(source).__qualname__, repr(source), str(getattr(source, "run_every", "")), _zone(source))
    rest = {name: value for name, value in definition.items() if name != "schedule"}
    text = json.dumps([described, rest], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _zone(source: Any) -> str:
    """Return a crontab's time zone, which is part of its row and can change with a setting alone."""
    return str(source.tz) if isinstance(source, crontab) else ""


def mark_of(definition: Definition, began_ms: int, database: str) -> str:
    """Return the note that the ledger keeps of a written definition.

    ``began_ms`` is the writer's start time, ``database`` the identity of the database.
    """
    return f"{digest(definition)} {began_ms} {database}"


def needs_write(definition: Definition, mark: str | None, *, has_row: bool, began_ms: int, database: str) -> bool:
    """True if the entry has to be written to its row. An unchanged entry without a row was deleted by a person.

    ``mark`` is the last writer's note, ``began_ms`` this process' start time in ms since the Unix epoch.
    """
    written, writer_began_ms, written_to = (*(mark or "").split(" "), "", "")[:3]
    if not written or (not has_row and (not database or database != written_to)):
        return True
    return written != digest(definition) and began_ms >= int(writer_began_ms or 0)


def write_static_entries(
    app: Celery,
    rows: StaticRows,
    database: Database,
    ledger: Ledger,
    term: Term,
    *,
    began_ms: int,
    emit: Callable[[events.Event], None],
    progress: Callable[[], None],
) -> None:
    """Write the changed entries, and note in the ledger which definitions were written.

    ``began_ms`` is this process' start time, and ``progress`` is called after each entry. Raises the database's errors
    and ``StoreError``.
    """
    notes = {name: f"static:{name}" for name in static_entries(app)}
    known = ledger.notes(list(notes.values()))
    marks = {name: known[note] for name, note in notes.items() if note in known}
    written = write(app, rows, database, marks, began_ms, emit, progress)
    if written:
        ledger.note(term, {notes[name]: mark for name, mark in written.items()})


def write(
    app: Celery,
    rows: StaticRows,
    database: Database,
    marks: Mapping[str, str],
    began_ms: int,
    emit: Callable[[events.Event], None],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Write the changed entries and return their new marks by name.

    An entry that its row can't hold is reported and left out. Raises the database's errors otherwise.
    """
    definitions = static_entries(app)
    identity, present = rows.present(list(definitions))
    written: list[str] = []
    for name, definition in definitions.items():
        mark, has_row = marks.get(name), name in present
        try:
            if needs_write(definition, mark, has_row=has_row, began_ms=began_ms, database=identity):
                _write_one(rows, name, definition)
                written.append(name)
            elif not has_row:
                extra = {"action": "static_entry_deleted", "entry": name}
                logger.info(
                    "Entry %s was deleted in the database: not written until the settings change", name, extra=extra
                )
        except Exception as exc:
            if database.fault(exc) not in (None, DatabaseFault.ROW):
                raise
            # The fault is in this entry; the others are still written.
            emit(events.EntryFailed.raised(name, EntryFault.INVALID, exc))
        progress()
    if written:
        # A database without rows may have had none.
        identity, _ = rows.present(())
    return {name: mark_of(definitions[name], began_ms, identity) for name in written}


def _write_one(rows: StaticRows, name: str, definition: Definition) -> None:
    lost = rows.write(name, definition)
    logger.info(
        "Wrote entry %s of the settings to the database",
        name,
        extra={"action": "static_entry_written", "entry": name},
    )
    if lost:
        logger.warning(
            "Entry %s runs without these options of the settings, which a row can't hold: %s",
            name,
            ", ".join(lost),
            extra={"action": "static_options_dropped", "entry": name, "options": lost},
        )


def row_schedule(value: Any, kinds: Collection[type]) -> Any:
    """Return the schedule of an entry. ``kinds`` are the store's own classes.

    Raises:
        UnreadableRow: a row can't hold it. As a row it would run by the rules of its base class.
    """
    source: Any = maybe_schedule(value)
    if type(source) not in {*_KINDS, *kinds}:
        raise UnreadableRow(f"a row can't hold a schedule of the class {type(source).__qualname__}")
    return source


def microseconds_of(source: Any) -> int | None:
    """Return an interval that is not in whole seconds, in microseconds. The stores would truncate it."""
    every = getattr(source, "run_every", None)
    return every // timedelta(microseconds=1) if isinstance(every, timedelta) and every.microseconds else None


def unpacked(definition: Definition, held: Collection[str] = OPTIONS) -> tuple[dict[str, Any], list[str]]:
    """Return an entry's keyword arguments for the store's ``_unpack_fields``, and what the row can't hold.

    ``held`` are the options that a row holds. The entry's own rules are in the headers.
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
    lost = sorted(options.keys() - held)
    if entry.get("relative") or getattr(entry["schedule"], "relative", False):
        lost.append("relative")
    if own:
        options["headers"] = misfire_headers(options.get("headers") or {}, own)
    return {**entry, "options": options}, lost
