"""Everything that a board knows, for JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ha_beat.clock import to_micros
from ha_beat.monitoring.status.redaction import redacted
from ha_beat.monitoring.status.replica import Board
from ha_beat.store.journal import VerdictRecord
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import Member

#: It grows when a field changes its meaning or goes; new ones may come.
STATUS_SCHEMA = 1


def document(board: Board) -> dict[str, Any]:
    """Everything, ready for JSON. Times `…_ms` are ms since the Unix epoch, `…_s` seconds."""
    look, now, replica = board.look, board.now_ms(), board.replica
    view = look.view
    members = board.members()
    leader = next((each for each in members if each.role == "leader"), None)
    live, ready = board.live(), board.ready()
    facts = look.facts
    return {
        "schema": STATUS_SCHEMA,
        "cluster": board.cluster,
        "now_ms": now,
        "replica": {
            "id": replica.id,
            "role": board.role,
            "host": replica.host,
            "pid": replica.pid,
            "version": replica.version,
            "since_ms": board.since_ms,
            "live": live.ok,
            "ready": ready.ok,
            "reasons": list(dict.fromkeys((*live.reasons, *ready.reasons))),
            "last_tick_s": round(board.idle, 3),
            "trust_s": round(board.trust_left, 3),
        },
        "redis": {
            "reachable": board.reachable,
            "why": board.why_unreachable,
            "age_s": round(board.look_age, 3) if view else None,
            "round_trip_s": round(look.round_trip, 6),
            "clock_offset_s": round(look.clock_offset, 3),
            "eviction_policy": facts.eviction_policy if facts else None,
            "append_only_file": facts.append_only_file if facts else None,
        },
        "lease": _lease(view.lease) if view and view.lease else None,
        "paused": _loads(view.paused) if view and view.paused else None,
        "members": [_member(each) for each in members],
        "entries": leader.entries if leader else None,
        "backlog": leader.backlog if leader else None,
        "overdue_s": leader.overdue_ms / 1000 if leader else None,
        "upcoming": [asdict(line) for line in leader.upcoming] if leader else [],
        "recent": [_verdict(record) for record in reversed(look.recent)],
        "terms": [asdict(span) for span in look.terms],
        "journal": {"length": view.journal_length, "counter": view.journal_counter} if view else None,
        "warnings": [asdict(warning) for warning in board.warnings(members)],
    }


def encoded(status: dict[str, Any]) -> bytes:
    """The status as JSON, without credentials."""
    return redacted(json.dumps(status, separators=(",", ":"))).encode()


def _loads(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _lease(lease: LeaseRecord) -> dict[str, Any]:
    names = (
        "holder",
        "epoch",
        "state",
        "since_ms",
        "renewed_ms",
        "ttl_ms",
        "http",
        "host",
        "pid",
        "version",
        "reason",
        "detail",
    )
    return {name: getattr(lease, name) for name in names}


def _member(member: Member) -> dict[str, Any]:
    record = asdict(member)
    del record["upcoming"]
    record["not_ready"] = list(member.not_ready)
    return record


def _verdict(record: VerdictRecord) -> dict[str, Any]:
    return {
        "n": record.n,
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
