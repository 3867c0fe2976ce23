"""Runner of the demo: starts the processes, lets the fault injector work, and stops everything."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis

from ha_beat.demo.cluster_state import DemoCluster, Observer
from ha_beat.demo.fault_injector import STOP_TIMEOUT_S, FaultInjector
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
from ha_beat.demo.view import DemoState, View

OBSERVE_INTERVAL_S = 0.05
VIEW_INTERVAL_S = 0.15
START_TIMEOUT_S = 90.0
PAUSE_BETWEEN_FAULTS_S = 3.0
CATCH_UP_TIMEOUT_S = 20.0
DRAIN_TIMEOUT_S = 5.0
#: An occurrence that was due longer ago than this when the demo ends, and has not run, counts as missed.
LATE_AT_MOST_S = 1.0


@dataclass
class DemoRunner:
    """One run of the demo."""

    view: View
    replicas: int
    #: Seconds from the first message; ``None`` for no limit.
    duration_s: float | None
    seed: int | None
    #: Folder that keeps the logs of the child processes; ``None`` to delete them at the end.
    log_folder: Path | None
    #: Signals received so far. The first ends the demo in order, the second without waiting for the processes.
    signals: Sequence[int]

    def __post_init__(self) -> None:
        self._began_s = self._first_message_s = time.monotonic()
        self._shown_s = 0.0
        self._cluster: DemoCluster
        self._faults: FaultInjector

    def run(self) -> DemoState:
        """Run the demo to its end, and return its last state.

        Raises:
            DemoError: the demo cannot go on.
        """
        with ExitStack() as stack:
            folder = self._folder(stack)
            server, url = start_server(find_server(os.environ), folder)
            stack.callback(end, [server], 2.0)
            observer = Observer(url)
            stack.callback(observer.close)
            env = child_environment(os.environ, url)
            replicas = [beat_replica(number, folder, env) for number in range(1, self.replicas + 1)]
            the_worker = worker(folder, env)
            stack.callback(lambda: end([the_worker, *replicas], self._timeout(STOP_TIMEOUT_S)))
            self._cluster = DemoCluster(replicas, observer, self.view, self._began_s)
            pause_s = min(PAUSE_BETWEEN_FAULTS_S, (self.duration_s or 60.0) / 8)
            self._faults = FaultInjector(replicas, self._cluster, self.seed, pause_s)
            self._cluster.note(f"embedded Redis at {url}; {len(replicas)} replicas and a worker are starting")
            try:
                period = self._play(replicas, the_worker)
            except redis.RedisError as problem:
                raise DemoError(f"the embedded Redis failed: {problem}\n{server.log_tail()}") from problem
            return self._state("end", *period)

    @property
    def accidents(self) -> int:
        """Return the number of replicas that ended, or did not end, unexpectedly."""
        return self._faults.accidents

    def _folder(self, stack: ExitStack) -> Path:
        if self.log_folder is not None:
            self.log_folder.mkdir(parents=True, exist_ok=True)
            return self.log_folder.resolve()
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ha-beat-demo-")))

    def _play(self, replicas: list[Child], the_worker: Child) -> tuple[int | None, int | None]:
        """Run until the end; return the period in µs in which every occurrence must have run."""
        the_worker.start()
        for replica in replicas:
            self._faults.start(replica)
        began_us = self._await_first_message([the_worker, *replicas])
        if began_us is None:
            return None, None
        while not (self.signals or self._left_s() == 0.0):
            self._cluster.refresh()
            if not the_worker.alive:
                raise DemoError(f"the worker ended unexpectedly:\n{the_worker.log_tail()}")
            self._faults.step()
            self._wait()
        caught_up_us = self._catch_up(replicas, began_us)
        self._cluster.ending = True
        # The leader is stopped last, so that no standby takes over.
        standbys = [replica for replica in replicas if replica is not self._cluster.leader()]
        for group in (standbys, replicas):
            end(group, self._timeout(STOP_TIMEOUT_S))
        self._drain()
        end([the_worker], self._timeout(STOP_TIMEOUT_S))
        self._cluster.refresh()
        return began_us, caught_up_us - round(LATE_AT_MOST_S * 1e6)

    def _await_first_message(self, children: list[Child]) -> int | None:
        """Return when the first message was enqueued, in µs; ``None`` if the demo was stopped before."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._cluster.tally.enqueued_under():
            if self.signals:
                return None
            self._cluster.refresh()
            dead = next((child for child in children if not child.alive), None)
            if dead:
                raise DemoError(f"{dead.name} ended immediately ({dead.exit_status}):\n{dead.log_tail()}")
            if time.monotonic() > deadline:
                tails = "\n".join(f"{child.name}:\n{child.log_tail()}" for child in children)
                raise DemoError(f"nothing was enqueued in {START_TIMEOUT_S:.0f} s:\n{tails}")
            self._wait()
        self._first_message_s = time.monotonic()
        self._faults.postpone()
        return time.time_ns() // 1000

    def _catch_up(self, replicas: list[Child], began_us: int) -> int:
        """Wait until nothing is overdue or the time is up; return the time in µs."""
        for replica in replicas:
            replica.signal(signal.SIGCONT)
        deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
        while True:
            self._cluster.refresh()
            now_us = time.time_ns() // 1000
            late = self._cluster.tally.behind(began_us, now_us - round(LATE_AT_MOST_S * 1e6))
            if not late or time.monotonic() > deadline or self._stop_now:
                return now_us
            self._wait()

    def _drain(self) -> None:
        """Wait until the worker has run every message."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        quiet, observer = 0, self._cluster.observer
        while quiet < 5 and time.monotonic() < deadline and not self._stop_now:
            self._cluster.refresh()
            quiet = 0 if observer.runs or observer.queued() else quiet + 1
            time.sleep(OBSERVE_INTERVAL_S)

    def _state(self, next_step: str, since_us: int | None = None, until_us: int | None = None) -> DemoState:
        return DemoState(
            elapsed_s=self._cluster.elapsed_s,
            left_s=self._left_s(),
            replicas=self._cluster.rows(),
            counts=self._cluster.tally.counts(since_us=since_us, until_us=until_us),
            takeovers=tuple(self._cluster.tally.takeovers()),
            lateness_s=tuple(self._cluster.lateness_s),
            next_step=next_step,
        )

    def _left_s(self) -> float | None:
        if self.duration_s is None:
            return None
        return max(0.0, self._first_message_s + self.duration_s - time.monotonic())

    @property
    def _stop_now(self) -> bool:
        return len(self.signals) > 1

    def _timeout(self, seconds: float) -> float:
        return 0.0 if self._stop_now else seconds

    def _wait(self) -> None:
        now = time.monotonic()
        if now - self._shown_s >= VIEW_INTERVAL_S:
            self._shown_s = now
            self.view.update(self._state(self._faults.next_step))
        time.sleep(OBSERVE_INTERVAL_S)
