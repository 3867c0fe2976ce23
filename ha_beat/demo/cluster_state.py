"""State of the demo's cluster: what the observations add up to, and the notes about it."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable, Sequence

from ha_beat.demo.app import INTERVALS_S
from ha_beat.demo.observer import Observation, Observer
from ha_beat.demo.processes import Child
from ha_beat.demo.tally import Leader, Takeover, Tally
from ha_beat.demo.view_model import ReplicaRow, View, takeover_text


class ClusterState:
    """State of the replicas, by the latest observation of Redis. Notes changes in the view."""

    def __init__(self, replicas: Sequence[Child], observer: Observer, view: View, began_s: float) -> None:
        self.tally = Tally({name: round(seconds * 1e6) for name, seconds in INTERVALS_S.items()})
        self.latest = Observation()
        #: Seconds from each run's instant to the run, sorted.
        self.lateness_s: list[float] = []
        #: True while the replicas are being stopped on purpose.
        self.ending = False
        self._replicas = replicas
        self._observer = observer
        self._view = view
        self._began_s = began_s
        #: Name by pid, also of processes that have ended.
        self._names: dict[int, str] = {}
        self._roles: dict[str, str] = {}
        #: Pids of the replicas that listen for a change of leader.
        self._ready: set[int] = set()
        self._unreported: list[Takeover] = []

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the demo began."""
        return time.monotonic() - self._began_s

    def note(self, text: str, *, grave: bool = False) -> None:
        self._view.note(self.elapsed_s, text, grave=grave)

    def started(self, replica: Child) -> None:
        self._names[replica.pid or 0] = replica.name

    def refresh(self) -> None:
        """Observe Redis. Raises redis.RedisError if the server does not answer."""
        latest = self.latest = self._observer.observe()
        lease = latest.lease
        if lease.held:
            leader = Leader(lease.epoch, self._names.get(lease.pid, f"pid {lease.pid}"), lease.since_ms)
            first = self.tally.leader is None
            takeover = self.tally.add_leader(leader)
            if takeover:
                self._unreported.append(takeover)
            elif first:
                self.note(f"{leader.replica} leads (epoch {leader.epoch})")
        for verdict in latest.verdicts:
            self.tally.add_verdict(verdict)
        self._report_takeovers()
        for run in latest.runs:
            duplicate = self.tally.add_run(run)
            bisect.insort(self.lateness_s, run.late_s)
            self._view.ran(self.elapsed_s, run, duplicate=duplicate)
        self._report_roles()

    def queued(self) -> int:
        """Return the number of messages that wait for the worker."""
        return self._observer.queued()

    def leader(self) -> Child | None:
        """Return the running replica that holds the lease."""
        lease = self.latest.lease
        if not lease.held:
            return None
        return next((r for r in self._replicas if r.alive and not r.paused and r.pid == lease.pid), None)

    def standby_ready(self) -> bool:
        """True if a standby could take over."""
        return any(row.role == "standby" for row in self.rows())

    def rows(self) -> tuple[ReplicaRow, ...]:
        return tuple(self._row(replica) for replica in self._replicas)

    def _row(self, replica: Child) -> ReplicaRow:
        lease, pid = self.latest.lease, replica.pid
        holds = lease.held and lease.pid == pid
        if not replica.alive:
            role = "ended" if self.ending else "dead"
        elif replica.paused:
            role = "paused"
        elif holds:
            role = "leader"
        else:
            role = self.latest.roles.get(pid or 0) or ("standby" if pid in self._ready else "starting")
            if role == "leader":  # its own record; the lease has moved on
                role = "stepping down"
        return ReplicaRow(
            replica.name,
            pid,
            role,
            epoch=lease.epoch if holds else None,
            lease_age_s=self.latest.lease_age_s if holds else None,
        )

    def _report_takeovers(self) -> None:
        for takeover in self.tally.takeovers():
            if takeover.silence_s is not None and any(t.epoch == takeover.epoch for t in self._unreported):
                self._unreported = [t for t in self._unreported if t.epoch != takeover.epoch]
                self.note(takeover_text(takeover))

    def _report_roles(self) -> None:
        alive = [replica.pid or 0 for replica in self._replicas if replica.alive]
        if self.latest.listeners >= len(alive):
            self._ready.update(alive)
        for row in self.rows():
            if row.role == "standby" and self._roles.get(row.name) not in ("standby", "leader"):
                self.note(f"{row.name} stands by")
            self._roles[row.name] = row.role


def overdue(tally: Tally, began_us: int, now_us: int, tolerance_s: float, entries: Iterable[str]) -> bool:
    """True if an occurrence of an entry is late by more than the tolerance."""
    newest = tally.newest_us()
    return any((newest[name] or began_us) + round((INTERVALS_S[name] + tolerance_s) * 1e6) < now_us for name in entries)
