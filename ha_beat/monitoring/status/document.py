"""Cluster as JSON, for ``/status``, ``ha-beat status --json`` and the admin page.

Times ``…_ms`` are in ms since the Unix epoch by the Redis server's clock, ``…_s`` in seconds. Codes are those of
:mod:`ha_beat.reasons`; beside each code stands its wording, for display only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ha_beat.clock import to_micros
from ha_beat.exception_text import without_secrets
from ha_beat.monitoring.status.replica import ReplicaStatus
from ha_beat.monitoring.status.snapshot import TermSpan
from ha_beat.monitoring.wording import health, phrase
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import VerdictRecord
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView, Member

#: Increased when a field is removed or changes its meaning. New fields may appear at any time.
STATUS_SCHEMA = 1


def cluster_document(
    cluster: str,
    view: ClusterView | None,
    recent: Iterable[VerdictRecord],
    terms: Iterable[TermSpan],
    *,
    members: Sequence[Member] | None = None,
    now_ms: int | None = None,
) -> dict[str, Any]:
    """Return the state of a cluster.

    ``view`` is ``None`` if Redis has not answered yet. ``recent`` is newest first, ``terms`` oldest first. A replica
    gives its own ``members`` and ``now_ms``, which are newer than the view's.
    """
    members = members if members is not None else view.members if view else ()
    leading = next((member for member in members if member.role == "leader"), None)
    lease, holder = (view.lease, view.leader) if view else (None, None)
    return {
        "schema": STATUS_SCHEMA,
        "cluster": cluster,
        "now_ms": now_ms if now_ms is not None or view is None else view.server_ms,
        "leader": holder.holder if holder else None,
        "lease": _lease(lease) if lease else None,
        "paused": Pause.parse(view.paused).as_data() if view and view.paused else None,
        "paused_entries": entry_pauses.in_force(view.paused_entries) if view else {},
        "members": [_member(member) for member in members],
        "entries": leading.entries if leading else None,
        "backlog": leading.backlog if leading else None,
        "taken_up": leading is not None and leading.taken_up,
        "overdue_s": leading.overdue_ms / 1000 if leading else None,
        "upcoming": [asdict(line) for line in leading.upcoming] if leading else [],
        "recent": [_verdict(record) for record in recent],
        "terms": [_term(span) for span in terms],
        "journal": {"length": view.journal_length, "counter": view.journal_counter} if view else None,
    }


def document(status: ReplicaStatus) -> dict[str, Any]:
    """Return the state of the cluster as one replica sees it, with its own state and its warnings."""
    snapshot, replica, members = status.snapshot, status.replica, status.members()
    live, ready = status.live(), status.ready()
    server = snapshot.server
    return {
        **cluster_document(
            status.cluster,
            snapshot.view,
            reversed(snapshot.recent),
            snapshot.terms,
            members=members,
            now_ms=status.now_ms(),
        ),
        **({"backlog": status.backlog(), "overdue_s": status.overdue()} if snapshot.unattended.due else {}),
        "replica": {
            "id": replica.id,
            "role": status.role,
            "host": replica.host,
            "pid": replica.pid,
            "version": replica.version,
            "since_ms": status.since_ms,
            "live": not live,
            "ready": not ready,
            "reasons": _problems({**live, **ready}),
            "last_tick_s": round(status.idle, 3),
            "trust_s": round(status.trust_left, 3),
            "taken_up": status.taken_up,
            "late": [
                {
                    "duty": duty,
                    "reason": late.reason,
                    "late_s": round(late.seconds, 3),
                    "detail": without_secrets(late.detail),
                }
                for duty, late in status.duties.late().items()
            ],
        },
        "redis": {
            "reachable": not status.unreachable,
            "detail": without_secrets(status.unreachable),
            "age_s": round(status.snapshot_age, 3) if snapshot.view else None,
            "round_trip_s": round(snapshot.round_trip, 6),
            "clock_offset_s": round(snapshot.clock_offset, 3),
            "eviction_policy": server.eviction_policy if server else None,
            "append_only_file": server.append_only_file if server else None,
        },
        "warnings": [asdict(replace(each, message=without_secrets(each.message))) for each in status.warnings(members)],
    }


def encoded(status: dict[str, Any]) -> bytes:
    return json.dumps(status, separators=(",", ":")).encode()


def _lease(lease: LeaseRecord) -> dict[str, Any]:
    names = ("holder", "epoch", "state", "since_ms", "renewed_ms", "ttl_ms", "http", "host", "pid", "version")
    return {
        **{name: getattr(lease, name) for name in names},
        "reason": lease.reason,
        "why": phrase(lease.reason, lease.detail) if lease.reason else "",
    }


def _member(member: Member) -> dict[str, Any]:
    record = asdict(member)
    del record["upcoming"]
    record["not_ready"] = _problems(member.not_ready)
    # Of another replica, perhaps of another version.
    record["failing"] = {entry: without_secrets(why) for entry, why in member.failing.items()}
    return record


def _problems(not_ready: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"reason": code, "why": without_secrets(why)} for code, why in zip(not_ready, health(not_ready), strict=True)
    ]


def _verdict(record: VerdictRecord) -> dict[str, Any]:
    return {
        "n": record.n,
        "kind": record.kind,
        "asked_by": record.asked_by,
        "entry": record.entry,
        "name": record.label,
        "verdict": record.verdict,
        "at_ms": to_micros(record.first) // 1000,
        "until_ms": to_micros(record.until) // 1000,
        "count": record.count,
        "ms": record.ms,
        "lateness_s": round(record.lateness, 4),
        "epoch": record.epoch,
        "by": record.by,
        "reason": record.reason,
        "detail": record.detail,
        "task_id": record.task_id,
    }


def _term(span: TermSpan) -> dict[str, Any]:
    return {
        **asdict(span),
        "why": phrase(span.reason),
        "end_why": "" if span.ended_ms is None else phrase(span.end_reason, span.end_detail),
    }
