"""Message header ``ha_beat``, which tells a task which occurrence it runs for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ha_beat.reasons import MessageKind

#: The header's name.
HEADER = "ha_beat"


@dataclass(frozen=True, slots=True)
class TaskOccurrence:
    """Occurrence that a task runs for.

    ``cluster`` is the name of the cluster, and ``entry`` the entry's name, or the row's key for a database schedule.
    ``scheduled_at`` is the due instant in UTC; for a manual run it is the time of the request. ``epoch`` is the epoch
    of the term that enqueued the message. ``run_count`` counts the entry's enqueued occurrences, with this one.
    ``manual`` and ``backfill`` are True for messages of ``ha-beat run`` and ``ha-beat backfill``. ``request`` is the id
    of that request, and empty for a message of the schedule.
    """

    cluster: str
    entry: str
    scheduled_at: datetime
    epoch: int = 0
    run_count: int = 0
    manual: bool = False
    backfill: bool = False
    request: str = ""

    def attributes(self) -> dict[str, str | int | bool]:
        """Return span attributes or log fields, whose names begin with ``ha_beat.``."""
        values = {**asdict(self), "scheduled_at": self.scheduled_at.isoformat()}
        return {f"ha_beat.{name}": value for name, value in values.items() if name != "request"}


def occurrence_of(request: Any) -> TaskOccurrence | None:
    """Return the occurrence behind a task's request, or ``None`` if ha_beat did not enqueue the message.

    ::

        @app.task(bind=True)
        def report(self):
            occurrence = ha_beat.occurrence_of(self.request)
            day = (occurrence.scheduled_at if occurrence else now()).date()

    A retry of the task keeps its occurrence. OpenTelemetry's ``CeleryInstrumentor`` makes its span current while
    ``task_prerun`` is sent, so this handler adds the occurrence to each span::

        @task_prerun.connect
        def add_occurrence(task, **_):
            occurrence = ha_beat.occurrence_of(task.request)
            if occurrence is not None:
                trace.get_current_span().set_attributes(occurrence.attributes())

    Connect it after ``CeleryInstrumentor().instrument()``: handlers run in the order in which they were connected.
    """
    found = header_in(request)
    if found is None:
        return None
    try:
        return TaskOccurrence(
            cluster=str(found["cluster"]),
            entry=str(found["entry"]),
            scheduled_at=datetime.fromisoformat(found["scheduled_at"]),
            epoch=int(found.get("epoch") or 0),
            run_count=int(found.get("run_count") or 0),
            manual=bool(found.get("manual")),
            backfill=bool(found.get("backfill")),
            request=str(found.get("request") or ""),
        )
    except (KeyError, TypeError, ValueError):
        return None


def header_in(request: Any) -> Mapping[str, Any] | None:
    """Return the header of a message, of a task's request, or of a worker's request; ``None`` if it has none."""
    message = getattr(request, "message", None)
    own = {HEADER: getattr(request, HEADER, None)}
    for headers in (own, getattr(request, "headers", None), getattr(message, "headers", None)):
        found = headers.get(HEADER) if isinstance(headers, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return None


def header_of(
    cluster: str,
    entry: str,
    instant: str,
    *,
    epoch: int,
    run_count: int,
    kind: MessageKind | None = None,
    request: str = "",
    busy: str = "",
) -> dict[str, Any]:
    """Return the header's value. ``instant`` is the due instant as :class:`Occurrence` spells it.

    ``kind`` and ``request`` are given for a message that was requested. ``busy`` is given for a message whose end the
    worker reports, and identifies it.
    """
    return {
        "cluster": cluster,
        "entry": entry,
        "scheduled_at": instant,
        "epoch": epoch,
        "run_count": run_count,
        **({str(kind): True} if kind else {}),
        **({"request": request} if request else {}),
        **({"busy": busy} if busy else {}),
    }


def with_header(options: Mapping[str, Any], header: Mapping[str, Any], task_id: str) -> dict[str, Any]:
    """Return a copy of an entry's publish options with this header, the header of Celery's beat, and the task id."""
    header = full_header(options, header, task_id)
    headers = {**(options.get("headers") or {}), "celery_beat_task": True, HEADER: header}
    return {**options, "headers": headers, "task_id": options.get("task_id") or task_id}


def full_header(options: Mapping[str, Any], header: Mapping[str, Any], task_id: str) -> dict[str, Any]:
    """Return the header of a message. If the entry has its own task id, the header also has the occurrence's.

    By that id a worker recognizes the second message of an occurrence.
    """
    return {**header, "task_id": task_id} if options.get("task_id") else dict(header)
