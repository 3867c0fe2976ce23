"""Fault injector: kills, pauses and stops the leader in turn, and restarts what has ended."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ha_beat.demo.app import LEASE_TTL_S
from ha_beat.demo.cluster_state import DemoCluster
from ha_beat.demo.processes import Child
from ha_beat.demo.tally import Fault, FaultKind

RESTART_AFTER_S = 1.0
PAUSED_AFTER_TAKEOVER_S = 1.0
STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _ActiveFault:
    kind: FaultKind
    victim: Child
    since_s: float
    taken_over_s: float | None = None


class FaultInjector:
    """Schedule of the faults and of the restarts. Times are of the monotonic clock, in seconds."""

    def __init__(self, replicas: Sequence[Child], cluster: DemoCluster, seed: int | None, pause_s: float) -> None:
        """``pause_s`` is the average pause between the end of a fault and the next one."""
        #: Replicas that ended, or did not end, unexpectedly.
        self.accidents = 0
        self._replicas = replicas
        self._cluster = cluster
        self._order = fault_order(seed)
        self._pause_s = pause_s
        self._active: _ActiveFault | None = None
        self._restart_at_s: dict[str, float] = {}
        self._next_kind, self._next_s = FaultKind.KILL, 0.0
        self._plan(time.monotonic())

    @property
    def next_step(self) -> str:
        """Return a text about the active fault or the next one."""
        if self._active is not None:
            return f"{self._active.victim.name} was {self._active.kind.past_tense}"
        left = max(0.0, self._next_s - time.monotonic())
        return f"{self._next_kind} the leader in {left:.0f} s ({self._next_kind.signal_name})"

    def postpone(self) -> None:
        """Count the pause before the first fault from now on."""
        self._next_s = time.monotonic() + self._pause_s

    def start(self, replica: Child) -> None:
        again = replica.pid is not None
        replica.start()
        self._restart_at_s.pop(replica.name, None)
        self._cluster.started(replica)
        if again:
            self._cluster.note(f"started {replica.name} again (pid {replica.pid})")

    def step(self) -> None:
        """Start, continue or finish a fault, and restart replicas that have ended."""
        now = time.monotonic()
        for replica in self._replicas:
            if not replica.alive and replica.name not in self._restart_at_s:
                self._accident(f"{replica.name} ended unexpectedly ({replica.exit_status}):\n{replica.log_tail()}")
                self._restart_at_s[replica.name] = now + RESTART_AFTER_S
            if not replica.alive and now >= self._restart_at_s.get(replica.name, now):
                self.start(replica)
        if self._active is not None:
            self._continue(self._active, now)
        elif now >= self._next_s and self._cluster.standby_ready():
            self._inject(now)

    def _plan(self, now: float) -> None:
        self._next_kind, factor = next(self._order)
        self._next_s = now + self._pause_s * factor

    def _inject(self, now: float) -> None:
        victim, lease = self._cluster.leader(), self._cluster.observer.lease
        if victim is None or not self._cluster.tally.enqueued_under(lease.epoch):
            return
        kind = self._next_kind
        self._cluster.tally.add_fault(Fault(kind, victim.name, lease.epoch, time.time_ns() // 1_000_000))
        self._active = _ActiveFault(kind, victim, now)
        victim.signal(signal.Signals[kind.signal_name])
        self._restart_at_s[victim.name] = float("inf")
        self._cluster.note(f"{kind.past_tense} {victim.name}, the leader ({kind.signal_name})")

    def _continue(self, fault: _ActiveFault, now: float) -> None:
        lease, victim = self._cluster.observer.lease, fault.victim
        moved = lease.held and lease.pid != victim.pid
        if fault.taken_over_s is None and moved and self._cluster.tally.enqueued_under(lease.epoch):
            fault.taken_over_s = now
        if fault.kind is FaultKind.PAUSE:
            if now <= (fault.taken_over_s or fault.since_s + 10 * LEASE_TTL_S) + PAUSED_AFTER_TAKEOVER_S:
                return
            self._cluster.note(f"resumed {victim.name} (SIGCONT) after {now - fault.since_s:.1f} s")
            victim.signal(signal.SIGCONT)
        elif victim.alive:
            if now - fault.since_s > STOP_TIMEOUT_S:
                self._accident(f"{victim.name} did not stop in {STOP_TIMEOUT_S:.0f} s")
                victim.kill_group()
            return
        elif fault.taken_over_s is None and now - fault.since_s < STOP_TIMEOUT_S:
            return  # so that a standby takes over, not the restarted replica
        self._restart_at_s[victim.name] = now + RESTART_AFTER_S
        self._active = None
        self._plan(now)

    def _accident(self, text: str) -> None:
        self.accidents += 1
        self._cluster.note(text, grave=True)


def fault_order(seed: int | None) -> Iterator[tuple[FaultKind, float]]:
    """Yield faults without end: the kind, and a factor from 0.7 to 1.3 for the pause before it.

    The first three are one of each kind, so that a short demo has all. Then come shuffled rounds with two kills.
    """
    chooser = random.Random(seed)
    upcoming = [FaultKind.KILL, FaultKind.PAUSE, FaultKind.STOP]
    while True:
        for kind in upcoming:
            yield kind, chooser.uniform(0.7, 1.3)
        upcoming = [FaultKind.KILL, FaultKind.KILL, FaultKind.PAUSE, FaultKind.STOP]
        chooser.shuffle(upcoming)
