"""Observer of the embedded Redis: the lease, the members, the journal and the worker's runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat.demo.app import CLUSTER, RUNS_KEY
from ha_beat.demo.tally import Run, Verdict


@dataclass(frozen=True, slots=True)
class LeaseState:
    """State of the lease record."""

    held: bool
    epoch: int
    pid: int
    host: str
    since_ms: int
    age_s: float
    """Seconds since the record was seen to be acquired or renewed."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation of the embedded Redis."""

    lease: LeaseState | None = None
    roles: Mapping[int, str] = field(default_factory=dict)
    """Role by pid of the registered replicas."""
    listeners: int = 0
    """Number of replicas that listen for a change of leader."""
    verdicts: tuple[Verdict, ...] = ()
    runs: tuple[Run, ...] = ()


class Observer:
    """Reader of the embedded Redis. Each observation has the verdicts and runs since the one before."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
        prefix = f"{{ha-beat:{CLUSTER}}}:"
        self._lease_key = prefix + "lease"
        self._members_key = prefix + "members"
        self._journal_key = prefix + "journal"
        self._wake_channel = prefix + "wake"
        self._journal_id = "-"
        self._renewal: tuple[str, str] | None = None
        self._renewed_s = 0.0

    def observe(self) -> Observation:
        """Observe once. Raises redis.RedisError if the server does not answer."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hgetall(self._lease_key)
        pipeline.hgetall(self._members_key)
        pipeline.xrange(self._journal_key, min=self._journal_id)
        pipeline.lrange(RUNS_KEY, 0, -1)
        pipeline.pubsub_numsub(self._wake_channel)
        lease, members, journal, runs, listeners = pipeline.execute()
        if journal:
            self._journal_id = f"({journal[-1][0]}"
        if runs:
            self._client.ltrim(RUNS_KEY, len(runs), -1)
        return Observation(
            lease=self._lease(lease) if lease else None,
            roles=roles_of(members),
            listeners=int(listeners[0][1]),
            verdicts=tuple(filter(None, (verdict_of(stream_id, fields) for stream_id, fields in journal))),
            runs=tuple(run_of(json.loads(run)) for run in runs),
        )

    def queued(self) -> int:
        """Return the number of messages that wait for the worker."""
        return int(self._client.llen("celery"))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _lease(self, record: Mapping[str, str]) -> LeaseState:
        renewal = (record.get("epoch", "0"), record.get("seq", "0"))
        now = time.monotonic()
        if renewal != self._renewal:
            self._renewal, self._renewed_s = renewal, now
        return LeaseState(
            held=record.get("state") == "held",
            epoch=int(record.get("epoch", 0)),
            pid=int(record.get("pid") or 0),
            host=record.get("host", ""),
            since_ms=int(record.get("since_ms") or 0),
            age_s=now - self._renewed_s,
        )


def roles_of(members: Mapping[str, str]) -> dict[int, str]:
    """Return the role by pid, from the records of the members."""
    records = [json.loads(record) for record in members.values()]
    records.sort(key=lambda record: record.get("seen_ms") or 0)
    return {int(record["pid"]): str(record.get("role", "")) for record in records if record.get("pid")}


def verdict_of(stream_id: str, fields: Mapping[str, str]) -> Verdict | None:
    """Parse a record of the journal; None if it is not a verdict."""
    record = json.loads(fields["d"])
    if not record.get("verdict") or not record.get("entry"):
        return None
    first = record.get("at") or record.get("from")
    if first is None:
        return None
    first_us = instant_us(first)
    return Verdict(
        entry=record["entry"],
        verdict=record["verdict"],
        first_us=first_us,
        until_us=instant_us(record["until"]) if "until" in record else first_us + 1,
        reason=record.get("why") or "",
        epoch=int(record.get("epoch") or 0),
        written_ms=int(stream_id.partition("-")[0]),
    )


def run_of(record: Mapping[str, Any]) -> Run:
    """Parse a run that the task recorded."""
    return Run(
        entry=record["entry"],
        scheduled_us=instant_us(record["scheduled_at"]),
        task_id=record["id"],
        epoch=int(record["epoch"]),
        worker=record["worker"],
        ran_us=int(record["ran_us"]),
    )


def instant_us(value: str | int) -> int:
    """Parse an instant: microseconds since 1970, or ISO 8601 with an offset."""
    if isinstance(value, int) or value.lstrip("-").isdigit():
        return int(value)
    instant = datetime.fromisoformat(value)
    # In two parts: a float cannot hold the seconds since 1970 to the microsecond.
    return round(instant.replace(microsecond=0).timestamp()) * 1_000_000 + instant.microsecond
