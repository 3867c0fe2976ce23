"""``CELERY_BEAT_SCHEDULE`` in a database schedule: written to the rows, by the leader, when it has changed.

django-celery-beat writes these entries at each start of beat, over whatever was edited in the admin. Here an entry is
written when it has no row, or when its definition is another than the one last written. A replica that started before
the one that wrote last writes nothing over it: in a rolling deploy the new settings win.
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
from ha_beat.schedule.entry_options import KEY

logger = logging.getLogger("ha_beat")

Definition = Mapping[str, Any]


def static_entries(app: Celery) -> dict[str, Definition]:
    """The entries of the settings, with Celery's own for cleaning up results, as django-celery-beat adds it."""
    found: dict[str, Definition] = {}
    if app.conf.result_expires:
        found["celery.backend_cleanup"] = {
            "task": "celery.backend_cleanup",
            "schedule": crontab("0", "4", "*"),
            "options": {"expire_seconds": 12 * 3600},
        }
    return {**found, **app.conf.beat_schedule}


def digest(definition: Definition) -> str:
    """Tells a definition from another; the same in every process."""
    source: Any = maybe_schedule(definition["schedule"])
    described = (type(source).__qualname__, repr(source), str(getattr(source, "run_every", "")), _zone(source))
    rest = {name: value for name, value in definition.items() if name != "schedule"}
    text = json.dumps([described, rest], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _zone(source: Any) -> str:
    """What a crontab's hours are of goes into its row, and may change with a setting alone."""
    return str(source.tz) if isinstance(source, crontab) else ""


def mark_of(definition: Definition, began_ms: int) -> str:
    return f"{digest(definition)} {began_ms}"


def to_be_written(definition: Definition, mark: str | None, *, has_row: bool, began_ms: int) -> bool:
    """Whether an entry goes to its row. ``mark`` is what the last writer left, ``began_ms`` when this process began."""
    if not has_row or not mark:
        return True
    written, _, by_one_begun = mark.partition(" ")
    return written != digest(definition) and began_ms >= int(by_one_begun or 0)


def write(
    app: Celery,
    model: Any,
    marks: Mapping[str, str],
    began_ms: int,
    emit: Callable[[events.Event], None],
) -> dict[str, str]:
    """Write what is to be written; returns the new marks. Raises Django's database errors."""
    definitions = static_entries(app)
    present = set(model._default_manager.filter(name__in=list(definitions)).values_list("name", flat=True))  # noqa: SLF001
    written: dict[str, str] = {}
    for name, definition in definitions.items():
        try:
            if to_be_written(definition, marks.get(name), has_row=name in present, began_ms=began_ms):
                _write_one(model, name, definition)
                written[name] = mark_of(definition, began_ms)
        except Exception as exc:
            if isinstance(exc, AnyDatabaseError) and not isinstance(exc, DataError | IntegrityError):
                raise
            # The entry's own fault: the others are to be written, and the rows of all to be kept.
            emit(events.EntryFailed(name, f"the settings' entry is left out: {type(exc).__name__}: {exc}", exc))
    return written


class _Fields(ModelEntry):  # type: ignore[misc]  # django-celery-beat has no types
    """Makes a row's fields of an entry of the settings."""

    @classmethod
    def to_model_schedule(cls, schedule: Any) -> tuple[Any, str]:
        source: Any = maybe_schedule(schedule)
        every = getattr(source, "run_every", None)
        if isinstance(every, timedelta) and every.microseconds:
            # django-celery-beat would cut it down to whole seconds, and half a second to none.
            count = every // timedelta(microseconds=1)
            return IntervalSchedule.objects.get_or_create(every=count, period=MICROSECONDS)[0], "interval"
        made: tuple[Any, str] = super().to_model_schedule(source)
        return made


def _write_one(model: Any, name: str, definition: Definition) -> None:
    entry = dict(definition)
    own = (entry.get("options") or {}).get(KEY)
    fields = _Fields._unpack_fields(**entry)  # noqa: SLF001 -- what DatabaseScheduler itself writes
    if own:
        headers = (entry.get("options") or {}).get("headers") or {}
        fields["headers"] = dumps(misfire_headers(headers, own))
    model._default_manager.update_or_create(name=name, defaults=fields)  # noqa: SLF001
    logger.info("Wrote %s of the settings to the database", name, extra={"action": "StaticEntryWritten"})
