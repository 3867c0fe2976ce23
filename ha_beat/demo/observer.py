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

from ha_beat.clock import to_micros
from ha_beat.demo.app import CLUSTER, RUNS_KEY
from ha_beat.demo.tally import Run
from ha_beat.store.journal import VerdictRecord, parse
from ha_beat.store.keys import Keys
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import Member


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation of the embedded Redis."""

    lease: LeaseRecord = field(default_factory=LeaseRecord)
    lease_age_s: float = 0.0
    """Seconds since the lease was seen to be acquired or renewed."""
    roles: Mapping[int, str] = field(default_factory=dict)
    """Role by pid of the registered replicas."""
    listeners: int = 0
    """Number of replicas that listen for a change of leader."""
    verdicts: tuple[VerdictRecord, ...] = ()
    runs: tuple[Run, ...] = ()


class Observer:
    """Reader of the embedded Redis. Each observation has the verdicts and runs since the one before."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
        self._keys = Keys(CLUSTER)
        self._journal_id = "-"
        self._renewal = (0, 0)
        self._renewed_s = 0.0

    def observe(self) -> Observation:
        """Observe once. Raises redis.RedisError if the server does not answer."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hgetall(self._keys.lease)
        pipeline.hgetall(self._keys.members)
        pipeline.xrange(self._keys.journal, min=self._journal_id)
        pipeline.lrange(RUNS_KEY, 0, -1)
        pipeline.pubsub_numsub(self._keys.wake)
        raw_lease, members, journal, runs, listeners = pipeline.execute()
        if journal:
            self._journal_id = f"({journal[-1][0]}"
        if runs:
            self._client.ltrim(RUNS_KEY, len(runs), -1)
        lease, now = LeaseRecord.parse(raw_lease), time.monotonic()
        if (lease.epoch, lease.seq) != self._renewal:
            self._renewal, self._renewed_s = (lease.epoch, lease.seq), now
        records = [parse(stream_id, 0, fields["d"]) for stream_id, fields in journal]
        return Observation(
            lease,
            now - self._renewed_s,
            roles=roles_of(members),
            listeners=int(listeners[0][1]),
            verdicts=tuple(record for record in records if isinstance(record, VerdictRecord)),
            runs=tuple(run_of(json.loads(run)) for run in runs),
        )

    def queued(self) -> int:
        """Return the number of messages that wait for the worker."""
        return int(self._client.llen("celery"))

    def close(self) -> None:
        self._client.close()


def roles_of(records: Mapping[str, str]) -> dict[int, str]:
    members = filter(None, (Member.parse(name, record) for name, record in records.items()))
    return {member.pid: member.role for member in sorted(members, key=lambda member: member.seen_ms)}


def run_of(record: Mapping[str, Any]) -> Run:
    return Run(
        entry=record["entry"],
        scheduled_us=to_micros(datetime.fromisoformat(record["scheduled_at"])),
        task_id=record["id"],
        epoch=int(record["epoch"]),
        worker=record["worker"],
        ran_us=int(record["ran_us"]),
    )
