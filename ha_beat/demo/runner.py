"""The demo itself: start everything, bring about faults, watch, end everything."""

from __future__ import annotations

import bisect
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis

from ha_beat.demo.app import INTERVALS_S, LEASE_TTL_S
from ha_beat.demo.faults import fault_script
from ha_beat.demo.observer import Observer, Sight
from ha_beat.demo.processes import (
    Child,
    DemoError,
    beat_replica,
    child_environment,
    end,
    find_server,
    start_server,
    worker,
)
from ha_beat.demo.tally import Fault, FaultKind, Leader, Run, Takeover, Tally
from ha_beat.demo.view_model import ReplicaRow, Scene, View, in_words

LOOK_EVERY_S = 0.05
SHOW_EVERY_S = 0.15
START_PATIENCE_S = 90.0
CALM_BETWEEN_FAULTS_S = 3.0
RESTART_AFTER_S = 1.0
PAUSED_AFTER_TAKEOVER_S = 1.0
STOP_PATIENCE_S = 10.0
SETTLE_PATIENCE_S = 20.0
DRAIN_PATIENCE_S = 5.0
LATE_AT_MOST_S = 1.0
"""An occurrence due longer ago than this, that has not run when the demo ends, counts as missed."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    replicas: int
    duration_s: float | None
    """Seconds from the first message on; None: until asked to end."""
    seed: int | None
    log_folder: Path | None
    """Where the logs of the child processes are kept; None: they go when the demo ends."""


@dataclass(slots=True)
class _Trouble:
    """The fault under way."""

    kind: FaultKind
    victim: Child
    since_s: float
    taken_over_s: float | None = None


class Show:
    """One run of the demo.

    ``asked_to_end`` is asked all the time; the first yes ends the show in good order. ``in_a_hurry`` says
    that order matters no more.
    """

    def __init__(
        self,
        options: Options,
        view: View,
        asked_to_end: Callable[[], bool],
        in_a_hurry: Callable[[], bool],
    ) -> None:
        self._options = options
        self._view = view
        self._asked_to_end = asked_to_end
        self._in_a_hurry = in_a_hurry
        self._tally = Tally({name: round(seconds * 1e6) for name, seconds in INTERVALS_S.items()})
        self._lateness_s: list[float] = []
        self._children: list[Child] = []
        self._replicas: list[Child] = []
        self._names: dict[int, str] = {}
        self._roles: dict[str, str] = {}
        self._ready: set[int] = set()
        self._restart_at_s: dict[str, float] = {}
        self._unreported: list[Takeover] = []
        self._sight = Sight()
        self._script = fault_script(options.seed)
        self._trouble: _Trouble | None = None
        self._calm_s = min(CALM_BETWEEN_FAULTS_S, (options.duration_s or 60.0) / 8)
        self._began_s = time.monotonic()
        self._first_message_s = self._began_s
        self._shown_s = 0.0
        self._next_kind, factor = next(self._script)
        self._next_fault_s = self._began_s + self._calm_s * factor
        self._ending = False
        self._tail_us: int | None = None
        self._begun_us: int | None = None
        self.accidents = 0
        """Replicas that ended though nobody made them."""

    def run(self) -> Scene:
        """Run the demo to its end and return its last moment. Raises DemoError where it can't go on."""
        with ExitStack() as stack:
            folder = self._folder(stack)
            stack.callback(self._end_all)
            server, url = start_server(find_server(os.environ), folder)
            self._children.append(server)
            observer = Observer(url)
            stack.callback(observer.close)
            env = child_environment(os.environ, url)
            self._replicas = [beat_replica(number, folder, env) for number in range(1, self._options.replicas + 1)]
            the_worker = worker(folder, env)
            self._children += [the_worker, *self._replicas]
            self._note(f"embedded Redis at {url}; {len(self._replicas)} replicas and a worker are starting")
            try:
                self._watch(observer, the_worker)
            except redis.RedisError as problem:
                message = f"the embedded Redis failed: {problem}\n{server.log_tail()}"
                raise DemoError(message) from problem
            return self._scene("the end")

    def _folder(self, stack: ExitStack) -> Path:
        if self._options.log_folder is not None:
            self._options.log_folder.mkdir(parents=True, exist_ok=True)
            return self._options.log_folder.resolve()
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ha-beat-demo-")))

    def _watch(self, observer: Observer, the_worker: Child) -> None:
        the_worker.start()
        for replica in self._replicas:
            self._start(replica)
        begun_us = self._await_first_message(observer, the_worker)
        if begun_us is None:
            return
        while not self._over():
            self._look(observer)
            self._keep_alive(the_worker)
            self._play()
            self._pause()
        settled_us = self._settle(observer, begun_us)
        self._ending = True
        # The leader last, or the others would take over from one another.
        standbys = [replica for replica in self._replicas if replica is not self._leading()]
        for group in (standbys, self._replicas):
            end(group, 0.0 if self._in_a_hurry() else STOP_PATIENCE_S)
        self._drain(observer)
        end([the_worker], 0.0 if self._in_a_hurry() else STOP_PATIENCE_S)
        self._look(observer)
        self._tail_us, self._begun_us = settled_us - round(LATE_AT_MOST_S * 1e6), begun_us

    # -- the acts

    def _await_first_message(self, observer: Observer, the_worker: Child) -> int | None:
        deadline = time.monotonic() + START_PATIENCE_S
        while not self._tally.first_enqueued:
            if self._asked_to_end():
                return None
            self._look(observer)
            dead = next((c for c in (the_worker, *self._replicas) if not c.alive), None)
            if dead:
                message = f"{dead.name} ended at once ({dead.exit_status}):\n{dead.log_tail()}"
                raise DemoError(message)
            if time.monotonic() > deadline:
                tails = "\n".join(f"{c.name}:\n{c.log_tail()}" for c in (the_worker, *self._replicas))
                message = f"nothing was enqueued in {START_PATIENCE_S:.0f} s:\n{tails}"
                raise DemoError(message)
            self._pause()
        self._first_message_s = time.monotonic()
        self._next_fault_s = self._first_message_s + self._calm_s
        return time.time_ns() // 1000

    def _play(self) -> None:
        """Bring about the next fault when it is time, and see the one under way through."""
        now = time.monotonic()
        for replica in self._replicas:
            if not replica.alive and now >= self._restart_at_s.get(replica.name, now):
                self._start(replica)
        if self._trouble is None:
            if now >= self._next_fault_s and self._standby_ready():
                self._strike(now)
        else:
            self._see_through(self._trouble, now)

    def _strike(self, now: float) -> None:
        victim, lease = self._leading(), self._sight.lease
        if victim is None or lease is None or not self._tally.enqueued_under(lease.epoch):
            return
        kind = self._next_kind
        self._tally.fault(Fault(kind, victim.name, lease.epoch, time.time_ns() // 1_000_000))
        self._trouble = _Trouble(kind, victim, now)
        victim.signal(signal.Signals[kind.signal_name])
        self._restart_at_s[victim.name] = float("inf")
        self._note(f"{kind.past_tense} {victim.name}, the leader ({kind.signal_name})")

    def _see_through(self, trouble: _Trouble, now: float) -> None:
        lease = self._sight.lease
        if (
            trouble.taken_over_s is None
            and lease
            and lease.held
            and lease.pid != trouble.victim.pid
            and self._tally.enqueued_under(lease.epoch)
        ):
            trouble.taken_over_s = now
        if trouble.kind is FaultKind.PAUSE:
            over = now > (trouble.taken_over_s or trouble.since_s + 10 * LEASE_TTL_S) + PAUSED_AFTER_TAKEOVER_S
            if not over:
                return
            self._note(f"resumed {trouble.victim.name} (SIGCONT) after {now - trouble.since_s:.1f} s")
            trouble.victim.signal(signal.SIGCONT)
        elif trouble.victim.alive:
            if now - trouble.since_s > STOP_PATIENCE_S:
                self._accident(f"{trouble.victim.name} did not stop in {STOP_PATIENCE_S:.0f} s")
                trouble.victim.kill_group()
            return
        elif trouble.taken_over_s is None and now - trouble.since_s < STOP_PATIENCE_S:
            return  # what takes over is a standby that waited, not the one that comes back
        self._restart_at_s[trouble.victim.name] = now + RESTART_AFTER_S
        self._trouble = None
        self._next_kind, factor = next(self._script)
        self._next_fault_s = now + self._calm_s * factor

    def _settle(self, observer: Observer, begun_us: int) -> int:
        """Wait until nothing is overdue; return the instant (µs) of that, or of giving up."""
        for replica in self._replicas:
            replica.signal(signal.SIGCONT)
        deadline = time.monotonic() + SETTLE_PATIENCE_S
        while True:
            self._look(observer)
            now_us = time.time_ns() // 1000
            newest = self._tally.newest_us()
            overdue = any(
                (begun_us if instant is None else instant) + round((INTERVALS_S[name] + LATE_AT_MOST_S) * 1e6) < now_us
                for name, instant in newest.items()
            )
            if not overdue or time.monotonic() > deadline or self._in_a_hurry():
                return now_us
            self._pause()

    def _drain(self, observer: Observer) -> None:
        deadline = time.monotonic() + DRAIN_PATIENCE_S
        quiet = 0
        while quiet < 5 and time.monotonic() < deadline and not self._in_a_hurry():
            self._look(observer)
            quiet = 0 if self._sight.runs or observer.queued() else quiet + 1
            time.sleep(LOOK_EVERY_S)

    # -- watching

    def _look(self, observer: Observer) -> None:
        sight = self._sight = observer.look()
        lease = sight.lease
        if lease and lease.held:
            leader = Leader(lease.epoch, self._names.get(lease.pid, f"pid {lease.pid}"), lease.since_ms)
            first = self._tally.leader is None
            takeover = self._tally.leads(leader)
            if takeover:
                self._unreported.append(takeover)
            elif first:
                self._note(f"{leader.replica} leads (epoch {leader.epoch})")
        for verdict in sight.verdicts:
            self._tally.verdict(verdict)
        self._report_takeovers()
        for run in sight.runs:
            self._take_in(run)
        alive = [replica.pid or 0 for replica in self._replicas if replica.alive]
        if sight.listeners >= len(alive):
            self._ready.update(alive)
        for row in self._rows():
            if row.role == "standby" and self._roles.get(row.name) not in ("standby", "leader"):
                self._note(f"{row.name} stands by")
            self._roles[row.name] = row.role

    def _report_takeovers(self) -> None:
        for takeover in self._tally.takeovers():
            if takeover.silence_s is not None and any(t.epoch == takeover.epoch for t in self._unreported):
                self._unreported = [t for t in self._unreported if t.epoch != takeover.epoch]
                self._note(in_words(takeover))

    def _take_in(self, run: Run) -> None:
        duplicate = self._tally.run(run)
        bisect.insort(self._lateness_s, run.late_s)
        self._view.ran(self._elapsed(), run, duplicate=duplicate)

    def _keep_alive(self, the_worker: Child) -> None:
        """Replicas that ended by themselves are an accident; a worker that did makes the show pointless."""
        if not the_worker.alive:
            message = f"the worker ended by itself:\n{the_worker.log_tail()}"
            raise DemoError(message)
        for replica in self._replicas:
            if not replica.alive and replica.name not in self._restart_at_s:
                self._accident(f"{replica.name} ended by itself ({replica.exit_status}):\n{replica.log_tail()}")
                self._restart_at_s[replica.name] = time.monotonic() + RESTART_AFTER_S

    def _rows(self) -> tuple[ReplicaRow, ...]:
        return tuple(self._row(replica) for replica in self._replicas)

    def _row(self, replica: Child) -> ReplicaRow:
        lease, pid = self._sight.lease, replica.pid
        holds = lease is not None and lease.held and lease.pid == pid
        if not replica.alive:
            role = "ended" if self._ending else "dead"
        elif replica.paused:
            role = "paused"
        elif holds:
            role = "leader"
        else:
            role = self._sight.roles.get(pid or 0) or ("standby" if pid in self._ready else "starting")
            if role == "leader":  # its own word, which the lease no longer bears out
                role = "stepping down"
        return ReplicaRow(
            replica.name,
            pid,
            role,
            epoch=lease.epoch if holds and lease else None,
            lease_age_s=lease.age_s if holds and lease else None,
        )

    def _scene(self, outlook: str) -> Scene:
        return Scene(
            elapsed_s=self._elapsed(),
            left_s=self._left_s(),
            replicas=self._rows(),
            counts=self._tally.counts(tail_us=self._tail_us, begun_us=self._begun_us),
            takeovers=tuple(self._tally.takeovers()),
            lateness_s=tuple(self._lateness_s),
            outlook=outlook,
        )

    # -- small things

    def _start(self, replica: Child) -> None:
        again = replica.pid is not None
        replica.start()
        self._restart_at_s.pop(replica.name, None)
        self._names[replica.pid or 0] = replica.name
        if again:
            self._note(f"started {replica.name} again (pid {replica.pid})")

    def _leading(self) -> Child | None:
        lease = self._sight.lease
        if lease is None or not lease.held:
            return None
        return next((r for r in self._replicas if r.alive and not r.paused and r.pid == lease.pid), None)

    def _standby_ready(self) -> bool:
        return any(row.role == "standby" for row in self._rows())

    def _over(self) -> bool:
        return self._asked_to_end() or self._left_s() == 0.0

    def _left_s(self) -> float | None:
        if self._options.duration_s is None:
            return None
        return max(0.0, self._first_message_s + self._options.duration_s - time.monotonic())

    def _elapsed(self) -> float:
        return time.monotonic() - self._began_s

    def _outlook(self) -> str:
        if self._trouble is not None:
            return f"{self._trouble.victim.name} was {self._trouble.kind.past_tense}"
        left = max(0.0, self._next_fault_s - time.monotonic())
        return f"{self._next_kind} the leader in {left:.0f} s ({self._next_kind.signal_name})"

    def _pause(self) -> None:
        now = time.monotonic()
        if now - self._shown_s >= SHOW_EVERY_S:
            self._shown_s = now
            self._view.show(self._scene(self._outlook()))
        time.sleep(LOOK_EVERY_S)

    def _note(self, text: str) -> None:
        self._view.note(self._elapsed(), text)

    def _accident(self, text: str) -> None:
        self.accidents += 1
        self._view.note(self._elapsed(), text, grave=True)

    def _end_all(self) -> None:
        """End what is left: after an ordinary end the Redis server alone, after an error anything."""
        others = [child for child in self._children if child.name != "redis"]
        end(others, 0.0 if self._in_a_hurry() else STOP_PATIENCE_S)
        end([child for child in self._children if child.name == "redis"], 2.0)
