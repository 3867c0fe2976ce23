"""``CELERY_BEAT_SCHEDULE`` in a database schedule: the leader writes changed entries to their rows.

django-celery-beat overwrites these rows at each start of beat, including edits made in the admin. Here an entry is
written if it has no row, or if its definition differs from the one last written. A replica that started before the
last writer does not overwrite it: in a rolling deploy the new settings win.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.schedules import crontab, maybe_schedule
from django.db import DataError, IntegrityError
from django.db import Error as AnyDatabaseError
from django_celery_beat.models import MICROSECONDS, IntervalSchedule
from django_celery_beat.schedulers import ModelEntry
from kombu.utils.json import dumps

from ha_beat import events
from ha_beat.django.entries import misfire_headers
from ha_beat.reasons import EntryFault
from ha_beat.schedule.entry_options import KEY
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger

logger = logging.getLogger("ha_beat")

Definition = Mapping[str, Any]


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


def mark_of(definition: Definition, began_ms: int) -> str:
    """Return the note that the ledger keeps of a written definition; ``began_ms`` is the writer's start time."""
    return f"{digest(definition)} {began_ms}"


def needs_write(definition: Definition, mark: str | None, *, has_row: bool, began_ms: int) -> bool:
    """True if the entry has to be written to its row.

    ``mark`` is the last writer's note, ``began_ms`` this process' start time in ms since the Unix epoch.
    """
    if not has_row or not mark:
        return True
    written, _, writer_began_ms = mark.partition(" ")
    return written != digest(definition) and began_ms >= int(writer_began_ms or 0)


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
    definitions = static_entries(app)
    present = set(model._default_manager.filter(name__in=list(definitions)).values_list("name", flat=True))  # noqa: SLF001
    written: dict[str, str] = {}
    for name, definition in definitions.items():
        try:
            if needs_write(definition, marks.get(name), has_row=name in present, began_ms=began_ms):
                _write_one(model, name, definition)
                written[name] = mark_of(definition, began_ms)
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
        every = getattr(source, "run_every", None)
        if isinstance(every, timedelta) and every.microseconds:
            # django-celery-beat would truncate it to whole seconds, and half a second to 0.
            count = every // timedelta(microseconds=1)
            return IntervalSchedule.objects.get_or_create(every=count, period=MICROSECONDS)[0], "interval"
        made: tuple[Any, str] = super().to_model_schedule(source)
        return made


def _write_one(model: Any, name: str, definition: Definition) -> None:
    entry = dict(definition)
    own = (entry.get("options") or {}).get(KEY)
    fields = _Fields._unpack_fields(**entry)  # noqa: SLF001 -- as DatabaseScheduler does
    if own:
        headers = (entry.get("options") or {}).get("headers") or {}
        fields["headers"] = dumps(misfire_headers(headers, own))
    model._default_manager.update_or_create(name=name, defaults=fields)  # noqa: SLF001
    logger.info(
        "Wrote entry %s of the settings to the database",
        name,
        extra={"action": "static_entry_written", "entry": name},
    )
