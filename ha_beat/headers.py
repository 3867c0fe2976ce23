"""What a running task can know of the occurrence that it was enqueued for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: The message header that says it.
HEADER = "ha_beat"


@dataclass(frozen=True, slots=True)
class TaskOccurrence:
    """The occurrence that a task runs for.

    ``cluster`` is the name under which the replicas share their schedule, ``entry`` the entry's name (of a database the
    row's key). ``scheduled_at``, in UTC, is the instant it was *meant* for; of a manual run, the instant it was asked
    for. ``epoch`` is the term it was enqueued in, ``run_count`` how many occurrences of the entry the cluster has
    enqueued with this one. ``manual`` and ``backfill`` say that somebody asked for it (``ha-beat run`` and
    ``ha-beat backfill``), ``request`` under which id; it is empty for a message by schedule.
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
        """As attributes of a span or fields of a log record, by names that begin with ``ha_beat.``."""
        return {
            "ha_beat.cluster": self.cluster,
            "ha_beat.entry": self.entry,
            "ha_beat.scheduled_at": self.scheduled_at.isoformat(),
            "ha_beat.epoch": self.epoch,
            "ha_beat.run_count": self.run_count,
            "ha_beat.manual": self.manual,
            "ha_beat.leader.backfill": self.backfill,
        }


def occurrence_of(request: Any) -> TaskOccurrence | None:
    """The occurrence behind a task's request, or ``None`` where the message was not enqueued by ha_beat.

    ::

        @app.task(bind=True)
        def report(self):
            occurrence = ha_beat.occurrence_of(self.request)
            day = (occurrence.scheduled_at if occurrence else now()).date()

    A retry of the task keeps its occurrence. With OpenTelemetry's ``CeleryInstrumentor``, whose span is the current one
    while ``task_prerun`` is sent, each span gets it by::

        @task_prerun.connect
        def say_which_occurrence(task, **_):
            occurrence = ha_beat.occurrence_of(task.request)
            if occurrence is not None:
                trace.get_current_span().set_attributes(occurrence.attributes())

    Connect this after ``CeleryInstrumentor().instrument()``, since handlers run in the order they were connected in.
    """
    found = getattr(request, HEADER, None)
    if not isinstance(found, Mapping):
        headers = getattr(request, "headers", None)
        found = headers.get(HEADER) if isinstance(headers, Mapping) else None
    if not isinstance(found, Mapping):
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
