"""State of the demo's cluster: what the observations add up to, and the notes about it."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable, Sequence

from ha_beat.demo.app import INTERVALS_S
from ha_beat.demo.observer import Observer
from ha_beat.demo.processes import Child
from ha_beat.demo.tally import Leader, Tally
from ha_beat.demo.view_model import ReplicaRow, View, takeover_text


class ClusterState:
    """State of the replicas, by the latest observation of Redis. Notes changes in the view."""

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
        #: Name by pid, also of processes that have ended.
        self._names: dict[int, str] = {}
        self._roles: dict[str, str] = {}
        #: Pids of the replicas that listen for a change of leader.
        self._ready: set[int] = set()
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
        """Observe Redis. Raises redis.RedisError if the server does not answer."""
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
            role = observer.roles.get(pid or 0) or ("standby" if pid in self._ready else "starting")
            if role == "leader":  # its own record; the lease has moved on
                role = "stepping down"
        epoch, age_s = (lease.epoch, observer.lease_age_s) if holds else (None, None)
        return ReplicaRow(replica.name, pid, role, epoch, age_s)

    def _report_roles(self) -> None:
        alive = [replica.pid or 0 for replica in self._replicas if replica.alive]
        if self.observer.listeners >= len(alive):
            self._ready.update(alive)
        for row in self.rows():
            if row.role == "standby" and self._roles.get(row.name) not in ("standby", "leader"):
                self.note(f"{row.name} stands by")
            self._roles[row.name] = row.role


def overdue(tally: Tally, began_us: int, now_us: int, tolerance_s: float, entries: Iterable[str]) -> bool:
    """True if an occurrence of an entry is late by more than the tolerance."""
    newest = tally.newest_us()
    return any((newest[name] or began_us) + round((INTERVALS_S[name] + tolerance_s) * 1e6) < now_us for name in entries)
