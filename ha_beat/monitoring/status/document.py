"""Cluster as JSON, for ``/status``, ``ha-beat status --json`` and the admin page.

Times ``…_ms`` are in ms since the Unix epoch by the Redis server's clock, ``…_s`` in seconds. Codes are those of
:mod:`ha_beat.reasons`. The texts beside them are for display only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from ha_beat.clock import to_micros
from ha_beat.exception_text import without_secrets
from ha_beat.monitoring.status.health import Problems, current_warnings, why_not_live, why_not_ready
from ha_beat.monitoring.status.members import members_seen
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

    ``view`` is ``None`` if Redis has not answered yet. ``recent`` is newest first, ``terms`` oldest first. ``members``
    and ``now_ms`` replace those of the view, which are older.
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
    snapshot, members = status.snapshot, members_seen(status)
    recent, now_ms = reversed(snapshot.recent), status.now_ms()
    shown = cluster_document(status.cluster, snapshot.view, recent, snapshot.terms, members=members, now_ms=now_ms)
    if snapshot.unattended.due:
        shown |= {"backlog": status.backlog(), "overdue_s": status.overdue()}
    warnings = current_warnings(status, members)
    return {
        **shown,
        "replica": _replica(status),
        "redis": _redis(status),
        "warnings": [asdict(replace(each, message=without_secrets(each.message))) for each in warnings],
    }


def _replica(status: ReplicaStatus) -> dict[str, Any]:
    replica, not_live, not_ready = status.replica, why_not_live(status), why_not_ready(status)
    return {
        **{name: getattr(replica, name) for name in ("id", "host", "pid", "version")},
        "role": status.role,
        "since_ms": status.since_ms,
        "live": not not_live,
        "ready": not not_ready,
        "reasons": _problems({**not_live, **not_ready}),
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
    }


def _redis(status: ReplicaStatus) -> dict[str, Any]:
    snapshot, server = status.snapshot, status.snapshot.server
    return {
        "reachable": not status.unreachable,
        "detail": without_secrets(status.unreachable),
        "age_s": round(status.snapshot_age, 3) if snapshot.view else None,
        "round_trip_s": round(snapshot.round_trip, 6),
        "clock_offset_s": round(snapshot.clock_offset, 3),
        "eviction_policy": server.eviction_policy if server else None,
        "append_only_file": server.append_only_file if server else None,
    }


def _lease(lease: LeaseRecord) -> dict[str, Any]:
    names = ("holder", "epoch", "state", "since_ms", "renewed_ms", "ttl_ms", "http", "host", "pid", "version", "reason")
    why = phrase(lease.reason, lease.detail) if lease.reason else ""
    return {**{name: getattr(lease, name) for name in names}, "why": why}


def _member(member: Member) -> dict[str, Any]:
    record = asdict(member)
    del record["upcoming"]
    record["not_ready"] = _problems(member.not_ready)
    # The text comes from another replica, which may run another version.
    record["failing"] = {entry: without_secrets(why) for entry, why in member.failing.items()}
    return record


def _problems(problems: Problems) -> list[dict[str, str]]:
    return [{"reason": code, "why": without_secrets(why)} for code, why in zip(problems, health(problems), strict=True)]


def _verdict(record: VerdictRecord) -> dict[str, Any]:
    names = ("n", "kind", "asked_by", "entry", "verdict", "count", "ms", "epoch", "by", "reason", "detail", "task_id")
    return {
        **{name: getattr(record, name) for name in names},
        "name": record.label,
        "at_ms": to_micros(record.first) // 1000,
        "until_ms": to_micros(record.until) // 1000,
        "lateness_s": round(record.lateness, 4),
    }


def _term(span: TermSpan) -> dict[str, Any]:
    return {
        **asdict(span),
        "why": phrase(span.reason),
        "end_why": "" if span.ended_ms is None else phrase(span.end_reason, span.end_detail),
    }
