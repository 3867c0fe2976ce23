"""The cluster as Django's processes see it: they look, and ask the leader. They never lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from celery import Celery, current_app
from celery._state import _get_active_apps  # type: ignore[attr-defined]  # not in the stubs
from django_celery_beat.models import PeriodicTask

from ha_beat.client import ClusterClient
from ha_beat.monitoring.wording import phrase
from ha_beat.reasons import RequestKind
from ha_beat.store.journal import Record, TermRecord, VerdictRecord
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.membership import Upcoming
from ha_beat.store.request_queue import Pause, Reply

#: Seconds to wait for the leader's answer in a request of a browser.
ANSWER_WITHIN = 10.0

#: Records of the journal looked through for what is shown.
_RECORDS = 500


def celery_app() -> Celery:
    """The project's Celery app. In threads other than the main one Celery itself falls back to an empty app."""
    proxy: Any = current_app
    app: Celery = proxy._get_current_object()  # noqa: SLF001 -- the object behind Celery's proxy
    if _configured(app):
        return app
    return next((each for each in _get_active_apps() if _configured(each)), app)


def _configured(app: Celery) -> bool:
    return getattr(app, "_config_source", None) is not None


@dataclass(frozen=True, slots=True)
class EntryState:
    """What the cluster knows of one row: the ledger's row, and of its last verdict what became of which occurrence.

    ``late`` is in seconds. ``by`` is empty where it can't be told any more who led.
    """

    row: LedgerRow | None = None
    verdict: str = ""
    reason: str = ""
    due: datetime | None = None
    late: float = 0.0
    by: str = ""

    @classmethod
    def of(cls, row: LedgerRow | None, record: VerdictRecord | None, leaders: Mapping[int, str]) -> EntryState:
        if record is not None:
            return cls(row, record.verdict, record.reason, record.first, record.lateness, record.by)
        if row is None or row.verdict in {"armed", "absent", "claimed"} or row.scheduled_at is None:
            return cls(row)
        late = row.dispatched_ms / 1000 - row.scheduled_at.timestamp()
        return cls(row, row.verdict, row.reason, row.scheduled_at, late, leaders.get(row.epoch, ""))


def ask(client: ClusterClient, kind: RequestKind, by: str, **args: Any) -> Reply:
    """Send a request to the leader in the name of a user, and return its answer.

    Raises:
        HaBeatError: no leader answered in time, or Redis failed.
    """
    return client.ask(kind, by=by, timeout=ANSWER_WITHIN, **args)


def states(client: ClusterClient, ids: Sequence[str]) -> Mapping[str, EntryState]:
    """Return the state of each of these rows, by primary key. Raises ``StoreError`` if Redis fails."""
    rows, lease = client.ledger.of(ids), client.view().lease
    newest: dict[str, VerdictRecord] = {}
    leaders = {} if lease is None else {lease.epoch: lease.holder}
    for record in client.journal.newest(_RECORDS):
        if isinstance(record, VerdictRecord) and record.kind == "occurrence":
            newest.setdefault(record.entry, record)
        elif isinstance(record, TermRecord):
            leaders[record.epoch] = record.by
    return {pk: EntryState.of(rows.get(pk), newest.get(pk), leaders) for pk in ids}


def page_data(client: ClusterClient) -> dict[str, Any]:
    """Return the content of the page as JSON types. Times are in ms since the Unix epoch.

    Raises:
        StoreError: Redis failed.
    """
    view, records = client.view(), client.journal.newest(_RECORDS)
    lease = view.lease
    leader = next((member for member in view.members if member.role == "leader"), None)
    verdicts = [record for record in records if isinstance(record, VerdictRecord)][:50]
    terms = [record for record in records if isinstance(record, TermRecord)][:20]
    return {
        "cluster": client.settings.cluster,
        "now_ms": view.server_ms,
        "leader": view.leader.holder if view.leader else "",
        "lease": None
        if lease is None
        else {
            "holder": lease.holder,
            "state": lease.state,
            "epoch": lease.epoch,
            "since_ms": lease.since_ms,
            "age_ms": lease.silent_ms(view.server_ms),
            "ttl_ms": lease.ttl_ms,
            "reason": phrase(lease.reason, lease.detail) if lease.reason else "",
        },
        "paused": Pause.parse(view.paused).as_data() if view.paused else None,
        "replicas": [
            {
                "id": member.id,
                "role": member.role,
                "host": member.host,
                "pid": member.pid,
                "version": member.version,
                "since_ms": member.since_ms,
                "seen_ms": member.seen_ms,
                "clock_offset_ms": member.clock_offset_ms,
                "http": member.http,
                "not_ready": list(member.not_ready),
            }
            for member in view.members
        ],
        "schedule": {"entries": leader.entries, "backlog": leader.backlog} if leader else None,
        "upcoming": _identified(leader.upcoming if leader else ()),
        "recent": _named(verdicts),
        "terms": [
            {
                "event": term.event,
                "by": term.by,
                "epoch": term.epoch,
                "why": phrase(term.reason, term.detail),
                "ms": term.ms,
            }
            for term in terms
        ],
    }


def _named(records: Sequence[VerdictRecord]) -> list[dict[str, Any]]:
    ids = {record.entry for record in records if record.entry.isdigit()}
    names = dict(PeriodicTask.objects.filter(pk__in=ids).values_list("pk", "name")) if ids else {}
    return [
        {
            "entry": record.entry,
            "name": names.get(int(record.entry) if record.entry.isdigit() else 0, _written_name(record)),
            "verdict": record.verdict,
            "due_ms": round(record.first.timestamp() * 1000),
            "late_ms": round(record.lateness * 1000),
            "count": record.count,
            "why": record.reason,
            "by": record.by,
            "task_id": record.task_id,
        }
        for record in records
    ]


def _identified(upcoming: Sequence[Upcoming]) -> list[dict[str, Any]]:
    """The leader tells names; the page links to rows."""
    names = [line.entry for line in upcoming]
    ids = dict(PeriodicTask.objects.filter(name__in=names).values_list("name", "pk")) if names else {}
    return [
        {"entry": str(ids.get(line.entry, "")), "name": line.entry, "task": line.task, "at_ms": line.at_ms}
        for line in upcoming
    ]


def _written_name(record: Record) -> str:
    return str(record.data.get("name") or record.data.get("entry") or "")


@cache
def cluster() -> ClusterClient:
    """Return the client of this project's cluster. It connects at its first call.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    return ClusterClient(celery_app())
