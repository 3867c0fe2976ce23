"""State of the cluster for Django's admin, with the names and ids of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any

from celery import Celery, current_app
from celery._state import _get_active_apps  # type: ignore[attr-defined]  # not in the stubs
from django_celery_beat.models import PeriodicTask

from ha_beat.client import ClusterClient
from ha_beat.monitoring.status import cluster_document, spans
from ha_beat.reasons import Verdict
from ha_beat.store import entry_pauses
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.journal import TermRecord, VerdictRecord
from ha_beat.store.ledger import LedgerRow

#: Number of records of the journal that are searched, from the newest on.
_RECORDS = 500


def project_app() -> Celery:
    """Return the project's Celery app. Celery's current app may be an empty one, except in the main thread."""
    proxy: Any = current_app
    app: Celery = proxy._get_current_object()  # noqa: SLF001 -- the object behind Celery's proxy
    if _configured(app):
        return app
    return next((each for each in _get_active_apps() if _configured(each)), app)


def _configured(app: Celery) -> bool:
    return getattr(app, "_config_source", None) is not None


@cache
def cluster() -> ClusterClient:
    """Return the client of this project's cluster. It connects at its first call.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    return ClusterClient(project_app())


@dataclass(frozen=True, slots=True)
class TaskState:
    """Ledger row of a periodic task, and its last verdict."""

    row: LedgerRow | None = None
    verdict: str = ""
    reason: str = ""
    #: ``None`` if there is no verdict.
    due: datetime | None = None
    #: In seconds.
    lateness: float = 0.0
    #: The replica, empty if it is unknown.
    by: str = ""
    #: The pause in force.
    pause: EntryPause | None = None

    @classmethod
    def of(cls, row: LedgerRow | None, record: VerdictRecord | None, leaders: Mapping[int, str]) -> TaskState:
        """Take the last verdict from the journal's record, or from the ledger row if the journal has none."""
        if record is not None:
            return cls(row, record.verdict, record.reason, record.first, record.lateness, record.by)
        if row is None or row.verdict not in _FINAL or row.scheduled_at is None:
            return cls(row)
        lateness = row.dispatched_ms / 1000 - row.scheduled_at.timestamp()
        return cls(row, row.verdict, row.reason, row.scheduled_at, lateness, leaders.get(row.epoch, ""))


_FINAL = frozenset({Verdict.ENQUEUED, Verdict.SKIPPED, Verdict.UNCERTAIN})


def states(client: ClusterClient, ids: Sequence[str]) -> Mapping[str, TaskState]:
    """Return the state of each of these tasks by primary key. Raises ``StoreError`` if Redis fails."""
    rows, view = client.ledger.of(ids), client.view()
    lease, pauses = view.lease, entry_pauses.parse(view.paused_entries)
    newest: dict[str, VerdictRecord] = {}
    leaders = {} if lease is None else {lease.epoch: lease.holder}
    for record in client.journal.newest(_RECORDS):
        if isinstance(record, VerdictRecord) and record.kind == "occurrence":
            newest.setdefault(record.entry, record)
        elif isinstance(record, TermRecord):
            leaders[record.epoch] = record.by
    found = {pk: TaskState.of(rows.get(pk), newest.get(pk), leaders) for pk in ids}
    paused = {pk: pauses[pk] for pk in ids if pk in pauses and pauses[pk].in_force}
    return found | {pk: replace(found[pk], pause=pause) for pk, pause in paused.items()}


def page_data(client: ClusterClient) -> dict[str, Any]:
    """Return the content of the page as JSON types. Times are in ms since the Unix epoch.

    Raises:
        StoreError: Redis failed.
    """
    view, records = client.view(), client.journal.newest(_RECORDS)
    verdicts = [record for record in records if isinstance(record, VerdictRecord)][:50]
    terms = [record for record in records if isinstance(record, TermRecord)][:20]
    data = cluster_document(client.settings.cluster, view, verdicts, spans(terms[::-1], view.lease))
    _add_names(data["recent"])
    _add_ids(data["upcoming"])
    return data


def _add_names(recent: Sequence[dict[str, Any]]) -> None:
    """Set the current names of rows. The journal has their primary keys, and their names at that time."""
    ids = {line["entry"] for line in recent if line["entry"].isdigit()}
    names = dict(PeriodicTask.objects.filter(pk__in=ids).values_list("pk", "name")) if ids else {}
    for line in recent:
        if line["entry"].isdigit():
            line["name"] = names.get(int(line["entry"]), line["name"])


def _add_ids(upcoming: Sequence[dict[str, Any]]) -> None:
    """Set the primary keys of rows. The leader's member record has only their names."""
    names = [line["entry"] for line in upcoming]
    ids = dict(PeriodicTask.objects.filter(name__in=names).values_list("name", "pk")) if names else {}
    for line in upcoming:
        line["name"], line["entry"] = line["entry"], str(ids.get(line["entry"], ""))
