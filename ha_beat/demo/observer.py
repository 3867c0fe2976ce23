"""Observer of the embedded Redis: the lease, the members, the journal and the worker's runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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


class Observer:
    """Reader of the embedded Redis. Its public attributes are of the latest observation."""

    def __init__(self, url: str) -> None:
        self.lease = LeaseRecord()
        #: Seconds since the lease was seen to be acquired or renewed.
        self.lease_age_s = 0.0
        #: Role by pid of the registered replicas.
        self.roles: Mapping[int, str] = {}
        #: Number of replicas that listen for a change of leader.
        self.listeners = 0
        #: Since the observation before.
        self.verdicts: list[VerdictRecord] = []
        self.runs: list[Run] = []
        self._client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
        self._keys = Keys(CLUSTER)
        self._journal_id = "-"
        self._renewed_s = 0.0

    def observe(self) -> None:
        """Observe once. Raises redis.RedisError if the server does not answer."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hgetall(self._keys.lease)
        pipeline.hgetall(self._keys.members)
        pipeline.xrange(self._keys.journal, min=self._journal_id)
        pipeline.lrange(RUNS_KEY, 0, -1)
        pipeline.pubsub_numsub(self._keys.wake)
        lease, members, journal, runs, listeners = pipeline.execute()
        if journal:
            self._journal_id = f"({journal[-1][0]}"
        if runs:
            self._client.ltrim(RUNS_KEY, len(runs), -1)
        before, self.lease, now = self.lease, LeaseRecord.parse(lease), time.monotonic()
        if (self.lease.epoch, self.lease.seq) != (before.epoch, before.seq):
            self._renewed_s = now
        self.lease_age_s = now - self._renewed_s
        self.roles = roles_of(members)
        self.listeners = int(listeners[0][1])
        records = [parse(stream_id, 0, fields["d"]) for stream_id, fields in journal]
        self.verdicts = [record for record in records if isinstance(record, VerdictRecord)]
        self.runs = [run_of(json.loads(run)) for run in runs]

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
