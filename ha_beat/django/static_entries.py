"""``CELERY_BEAT_SCHEDULE`` in a database schedule: the leader writes changed entries to their rows.

django-celery-beat overwrites these rows at each start of beat, including edits made in the admin, and restores those
that were deleted. Here an entry is written if its definition differs from the one last written to this database. A
replica that started before the last writer does not overwrite it: in a rolling deploy the new settings win.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.schedules import crontab, maybe_schedule, schedule, solar
from django.db import DataError, IntegrityError, ProgrammingError, connections, router, transaction
from django.db import Error as AnyDatabaseError
from django.db.migrations.recorder import MigrationRecorder
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import MICROSECONDS, IntervalSchedule
from django_celery_beat.schedulers import ModelEntry
from django_celery_beat.tzcrontab import TzAwareCrontab
from kombu.utils.json import dumps

from ha_beat import events
from ha_beat.django.entries import UnreadableRow, misfire_headers
from ha_beat.django.limits import limited
from ha_beat.reasons import EntryFault
from ha_beat.schedule.entry_options import KEY
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger

logger = logging.getLogger("ha_beat")

Definition = Mapping[str, Any]

#: Classes of schedules that a row holds. A subclass may be due at other times.
_KINDS = frozenset({schedule, crontab, TzAwareCrontab, solar, clocked})

#: Options of an entry that a row holds.
_OPTIONS = frozenset({"queue", "exchange", "routing_key", "priority", "headers", "expire_seconds"})


def static_entries(app: Celery) -> dict[str, Definition]:
    """Return the entries of the settings, and the cleanup of results that django-celery-beat adds."""
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


def database_identity(alias: str) -> str:
    """Return a text that tells this database from a new one, which lacks the rows; empty if there is none.

    It is the time at which the tables were created. Raises Django's database errors.
    """
    if not MigrationRecorder(connections[alias]).has_table():
        return ""
    applied = MigrationRecorder.Migration.objects.using(alias).filter(app="django_celery_beat")
    try:
        with transaction.atomic(using=alias):
            first = applied.order_by("applied").values_list("applied", flat=True).first()
    except ProgrammingError:
        # This user may not read the table.
        return ""
    return "" if first is None else hashlib.sha256(str(first).encode()).hexdigest()[:8]


def write_static_entries(
    app: Celery, model: Any, ledger: Ledger, term: Term, *, began_ms: int, emit: Callable[[events.Event], None]
) -> None:
    """Write the changed entries, and note in the ledger which definitions were written.

    ``began_ms`` is this process' start time. Raises Django's database errors and ``StoreError``.
    """
    notes = {name: f"static:{name}" for name in static_entries(app)}
    known = ledger.notes(list(notes.values()))
    marks = {name: known[note] for name, note in notes.items() if note in known}
    written = write(app, model, marks, began_ms, emit)
    if written:
        ledger.note(term, {notes[name]: mark for name, mark in written.items()})


def write(
    app: Celery, model: Any, marks: Mapping[str, str], began_ms: int, emit: Callable[[events.Event], None]
) -> dict[str, str]:
    """Write the changed entries and return their new marks by name.

    An entry that its row can't hold is reported and left out. Raises Django's database errors otherwise.
    """
    alias, rows = router.db_for_write(model), model._default_manager  # noqa: SLF001 -- Django's documented way
    definitions = static_entries(app)
    with limited(alias):
        database = database_identity(alias)
        present = set(rows.using(alias).filter(name__in=list(definitions)).values_list("name", flat=True))
    written: dict[str, str] = {}
    for name, definition in definitions.items():
        mark, has_row = marks.get(name), name in present
        try:
            if needs_write(definition, mark, has_row=has_row, began_ms=began_ms, database=database):
                with limited(alias):
                    _write_one(model, name, definition)
                written[name] = mark_of(definition, began_ms, database)
            elif not has_row:
                extra = {"action": "static_entry_deleted", "entry": name}
                logger.info(
                    "Entry %s was deleted in the database: not written until the settings change", name, extra=extra
                )
        except Exception as exc:
            if isinstance(exc, AnyDatabaseError) and not isinstance(exc, DataError | IntegrityError):
                raise
            # The fault is in this entry; the others are still written.
            emit(events.EntryFailed.raised(name, EntryFault.INVALID, exc))
    return written


class _Fields(ModelEntry):  # type: ignore[misc]  # django-celery-beat has no types
    """Converter of an entry of the settings to the fields of a row."""

    @classmethod
    def to_model_schedule(cls, schedule: Any) -> tuple[Any, str]:
        source: Any = maybe_schedule(schedule)
        if type(source) not in _KINDS:
            # As a row it would run by the rules of its base class.
            raise UnreadableRow(f"a row can't hold a schedule of the class {type(source).__qualname__}")
        every = getattr(source, "run_every", None)
        if isinstance(every, timedelta) and every.microseconds:
            # django-celery-beat would truncate it to whole seconds, and half a second to 0.
            fields = {"every": every // timedelta(microseconds=1), "period": MICROSECONDS}
            return IntervalSchedule.objects.filter(**fields).first() or IntervalSchedule.objects.create(
                **fields
            ), "interval"
        made: tuple[Any, str] = super().to_model_schedule(source)
        return made


def unpacked(definition: Definition) -> tuple[dict[str, Any], list[str]]:
    """Return the row's fields for an entry of the settings, and what the row can't hold."""
    entry = dict(definition)
    options = dict(entry.get("options") or {})
    own = options.pop(KEY, None)
    expires = options.pop("expires", None)
    if isinstance(expires, datetime):
        entry["expires"] = expires
    elif expires is not None:
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
        options["expire_seconds"] = math.ceil(seconds)
    lost = sorted(options.keys() - _OPTIONS)
    if entry.get("relative") or getattr(entry["schedule"], "relative", False):
        lost.append("relative")
    fields = _Fields._unpack_fields(**{**entry, "options": options})  # noqa: SLF001 -- as DatabaseScheduler does
    if own:
        fields["headers"] = dumps(misfire_headers(options.get("headers") or {}, own))
    return fields, lost


def _write_one(model: Any, name: str, definition: Definition) -> None:
    fields, lost = unpacked(definition)
    model._default_manager.update_or_create(name=name, defaults=fields)  # noqa: SLF001 -- Django's documented way
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
