"""State of the demo's cluster, as observed in the embedded Redis, and the notes about its changes."""

from __future__ import annotations

import bisect
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat.clock import to_micros
from ha_beat.demo.app import CLUSTER, INTERVALS_S, RUNS_KEY
from ha_beat.demo.processes import Child
from ha_beat.demo.tally import Leader, Run, Tally
from ha_beat.demo.view import ReplicaRow, View, takeover_text
from ha_beat.store.journal import VerdictRecord, parse
from ha_beat.store.keys import Keys
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import Member


class Observer:
    """Reader of the lease, the members, the journal and the worker's runs. Its attributes have the latest values."""

    def __init__(self, url: str) -> None:
        self.lease = LeaseRecord()
        #: Seconds since the lease was seen to be acquired or renewed.
        self.lease_age_s = 0.0
        #: Role by pid of the registered replicas.
        self.roles: Mapping[int, str] = {}
        #: Verdicts and runs that are new since the previous observation.
        self.verdicts: list[VerdictRecord] = []
        self.runs: list[Run] = []
        self._client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
        self._keys = Keys(CLUSTER)
        self._journal_id = "-"
        self._renewed_s = 0.0

    def observe(self) -> None:
        """Observe once.

        Raises:
            redis.RedisError: the server does not answer.
        """
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hgetall(self._keys.lease)
        pipeline.hgetall(self._keys.members)
        pipeline.xrange(self._keys.journal, min=self._journal_id)
        pipeline.lrange(RUNS_KEY, 0, -1)
        lease, members, journal, runs = pipeline.execute()
        if journal:
            self._journal_id = f"({journal[-1][0]}"
        if runs:
            self._client.ltrim(RUNS_KEY, len(runs), -1)
        before, self.lease, now = self.lease, LeaseRecord.parse(lease), time.monotonic()
        if (self.lease.epoch, self.lease.seq) != (before.epoch, before.seq):
            self._renewed_s = now
        self.lease_age_s = now - self._renewed_s
        self.roles = roles_of(members)
        records = [parse(stream_id, 0, fields["d"]) for stream_id, fields in journal]
        self.verdicts = [record for record in records if isinstance(record, VerdictRecord)]
        self.runs = [run_of(json.loads(run)) for run in runs]

    def queued(self) -> int:
        """Return the number of messages that wait for the worker."""
        return int(self._client.llen("celery"))

    def close(self) -> None:
        self._client.close()


def roles_of(records: Mapping[str, str]) -> dict[int, str]:
    """Return the role in the newest member record of each pid."""
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


class DemoCluster:
    """State of the replicas by the latest observation. It notes changes in the view."""

    def __init__(self, replicas: Sequence[Child], observer: Observer, view: View, began_s: float) -> None:
        self.tally = Tally({name: round(seconds * 1e6) for name, seconds in INTERVALS_S.items()})
        self.observer = observer
        #: Seconds from each run's instant to the run, sorted.
        self.lateness_s: list[float] = []
        #: True while the replicas are being stopped on purpose.
        self.ending = False
        self._replicas = replicas
        self._view = view
        self._began_s = began_s
        #: Names by pid, including those of processes that have ended.
        self._names: dict[int, str] = {}
        self._roles: dict[str, str] = {}
        #: Epochs of the takeovers that were noted.
        self._noted: set[int] = set()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the demo began."""
        return time.monotonic() - self._began_s

    def note(self, text: str, *, grave: bool = False) -> None:
        self._view.note(self.elapsed_s, text, grave=grave)

    def started(self, replica: Child) -> None:
        self._names[replica.pid or 0] = replica.name

    def refresh(self) -> None:
        """Observe Redis, and note what has changed.

        Raises:
            redis.RedisError: the server does not answer.
        """
        observer = self.observer
        observer.observe()
        lease = observer.lease
        if lease.held:
            leader = Leader(lease.epoch, self._names.get(lease.pid, f"pid {lease.pid}"), lease.since_ms)
            if self.tally.leader is None:
                self.note(f"{leader.replica} leads (epoch {leader.epoch})")
            self.tally.add_leader(leader)
        for verdict in observer.verdicts:
            self.tally.add_verdict(verdict)
        for takeover in self.tally.takeovers():
            if takeover.silence_s is not None and takeover.epoch not in self._noted:
                self._noted.add(takeover.epoch)
                self.note(takeover_text(takeover))
        for run in observer.runs:
            duplicate = self.tally.add_run(run)
            bisect.insort(self.lateness_s, run.late_s)
            self._view.ran(self.elapsed_s, run, duplicate=duplicate)
        self._report_roles()

    def leader(self) -> Child | None:
        """Return the running replica that holds the lease."""
        lease = self.observer.lease
        running = (replica for replica in self._replicas if replica.alive and not replica.paused)
        return next((replica for replica in running if lease.held and replica.pid == lease.pid), None)

    def standby_ready(self) -> bool:
        """True if a standby could take over."""
        return any(row.role == "standby" for row in self.rows())

    def rows(self) -> tuple[ReplicaRow, ...]:
        return tuple(self._row(replica) for replica in self._replicas)

    def _row(self, replica: Child) -> ReplicaRow:
        observer, pid = self.observer, replica.pid
        lease = observer.lease
        holds = lease.held and lease.pid == pid
        if not replica.alive:
            role = "ended" if self.ending else "dead"
        elif replica.paused:
            role = "paused"
        elif holds:
            role = "leader"
        else:
            role = observer.roles.get(pid or 0, "starting")
            if role == "leader":  # by its own record, while another replica holds the lease
                role = "stepping down"
        epoch, age_s = (lease.epoch, observer.lease_age_s) if holds else (None, None)
        return ReplicaRow(replica.name, pid, role, epoch, age_s)

    def _report_roles(self) -> None:
        for row in self.rows():
            if row.role == "standby" and self._roles.get(row.name) not in ("standby", "leader"):
                self.note(f"{row.name} stands by")
            self._roles[row.name] = row.role
