"""Cluster of real beat processes that a test can kill, pause and restart.

    with BeatCluster(redis_server.url, spec={"fast": {"every": 0.2}}) as cluster:
        leader = cluster.wait_for_leader()
        leader.kill()
        cluster.wait_for_leader(other_than=leader)

The scheduler is a parameter, so that stock beat can run in it too.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.commands import ROOT
from tests.support.servers import ServerProcess, wait_for

STOCK_SCHEDULER = "celery.beat:PersistentScheduler"

_FOREIGN = ("HA_BEAT_", "CELERY_", "DJANGO_", "BROKER_URL", "BEAT_SPEC", "APP_", "LD_PRELOAD", "COV_")


def ha_scheduler() -> str:
    """Return `ha_beat` if the package is installed, else the full path of the scheduler."""
    installed = any(point.name == "ha_beat" for point in entry_points(group="celery.beat_schedulers"))
    return "ha_beat" if installed else "ha_beat.scheduler:HAScheduler"


def base_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings of Celery and ha_beat, with the repository importable."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["PYTHONUNBUFFERED"] = "1"
    env["TZ"] = "UTC"
    return {**env, **(extra or {})}


class Replica:
    """Beat process with its own process group and folder. Its log survives restarts."""

    def __init__(self, name: str, command: Sequence[str], directory: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.command = list(command)
        self.directory = directory
        self.env = dict(env)
        self.log_path = directory / "beat.log"
        self.paused = False
        self.starts = 0
        self._process: ServerProcess | None = None

    def __repr__(self) -> str:
        return f"<Replica {self.name} pid={self._process.pid if self._process else None} alive={self.alive}>"

    def start(self) -> Self:
        if self.alive:
            return self
        self.starts += 1
        self.paused = False
        self._process = ServerProcess(self.command, self.log_path, cwd=self.directory, env=self.env)
        return self

    @property
    def process(self) -> ServerProcess:
        if self._process is None:
            raise RuntimeError(f"replica {self.name} has not been started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        """True while the process exists, paused or not."""
        return self._process is not None and self._process.alive

    @property
    def exit_code(self) -> int | None:
        """Return None while it runs; a negative number is the signal that ended it."""
        return self.process.exit_code

    def kill(self) -> int:
        """Send SIGKILL to the group and wait for the end."""
        self.paused = False
        return self.process.kill()

    def terminate(self, timeout: float = 15.0) -> int:
        """Send SIGTERM and wait. After `timeout` seconds, send SIGKILL and raise AssertionError."""
        process = self.process
        process.send(signal.SIGTERM)
        self.resume()
        try:
            return process.wait(timeout)
        except Exception as error:
            process.kill()
            raise AssertionError(
                f"{self.name} did not end {timeout:g} s after SIGTERM:\n{process.log_tail()}"
            ) from error

    def pause(self) -> None:
        """Send SIGSTOP to the group: its connections stay open."""
        self.process.pause()
        self.paused = True

    def resume(self) -> None:
        if self._process is not None:
            self._process.resume()
        self.paused = False

    def restart(self) -> Self:
        """Start it again, after SIGKILL if it still runs."""
        if self.alive:
            self.kill()
        return self.start()

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def wait_for_log(self, text: str, timeout: float = 20.0, count: int = 1) -> None:
        """Wait until the log contains `text` `count` times. The AssertionError shows the end of the log."""
        try:
            wait_for(lambda: self.log_text().count(text) >= count, timeout, f"{text!r} in the log of {self.name}", 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None

    def wait_for_log_of_start(self, timeout: float = 30.0) -> None:
        """Wait until the last started beat has logged its start (imports done, signal handlers set)."""
        self.wait_for_log("beat: Starting...", timeout, count=self.starts)


class BeatCluster:
    """Replicas that share one schedule. A context manager: all are started on entry and killed on exit.

    broker_urls and lease_urls: one URL for all, or one for each replica (for example through its own proxy). Without
    lease_urls the lease is in the broker. `spec` is the schedule and `config` further Celery settings, as
    `tests.support.apps.tick_app` reads them. `settings` become HA_BEAT_<NAME> variables. `env` is added for every
    replica, `replica_env` for single ones. `admin_url` is the URL by which the test reads the lease (default: the first
    lease or broker URL).
    """

    def __init__(
        self,
        broker_urls: str | Sequence[str],
        *,
        spec: Mapping[str, Mapping[str, Any]] | None = None,
        replicas: int = 3,
        lease_urls: str | Sequence[str] | None = None,
        scheduler: str | None = None,
        app: str = "tests.support.apps.tick_app",
        cluster: str = "tick",
        settings: Mapping[str, object] | None = None,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        replica_env: Sequence[Mapping[str, str]] = (),
        beat_args: Sequence[str] = (),
        admin_url: str | None = None,
        log_level: str = "INFO",
    ) -> None:
        self.name = cluster
        self.scheduler = scheduler or ha_scheduler()
        self.directory = Path(tempfile.mkdtemp(prefix="hab-cluster-"))
        self.spec = spec
        self.config = dict(config or {})
        self.app = app
        self.beat_args = list(beat_args)
        self.log_level = log_level
        self.env = dict(env or {})
        self.settings = {f"HA_BEAT_{name.upper()}": _text(value) for name, value in (settings or {}).items()}
        brokers = _one_each(broker_urls, replicas)
        leases = _one_each(lease_urls, replicas) if lease_urls else [None] * replicas
        extras = [*replica_env, *[{}] * (replicas - len(replica_env))]
        self.replicas = [
            self._new_replica(f"beat-{number}", brokers[number], leases[number], extras[number])
            for number in range(replicas)
        ]
        self._admin_url = admin_url or leases[0] or brokers[0]

    def _new_replica(self, name: str, broker: str, lease: str | None, extra: Mapping[str, str]) -> Replica:
        directory = self.directory / name
        directory.mkdir()
        env = base_environment(self.env)
        env["BROKER_URL"] = broker
        env["APP_CONFIG"] = json.dumps(self.config)
        if self.spec is not None:
            env["BEAT_SPEC"] = json.dumps(self.spec)
        if self.scheduler != STOCK_SCHEDULER:
            env |= {"HA_BEAT_CLUSTER": self.name, "HA_BEAT_REPLICA": name, **self.settings}
            if lease:
                env["HA_BEAT_REDIS_URL"] = lease
        command = [
            *(sys.executable, "-m", "celery", "-A", self.app, "beat"),
            *("-S", self.scheduler, "-l", self.log_level, "--pidfile=", "-s", str(directory / "schedule")),
            *self.beat_args,
        ]
        return Replica(name, command, directory, {**env, **extra})

    # -- life cycle

    def start(self) -> Self:
        for replica in self.replicas:
            replica.start()
        return self

    def close(self) -> None:
        """Kill every replica and remove the folder. Idempotent."""
        for replica in self.replicas:
            if replica.alive:
                replica.kill()
        if "admin" in vars(self):
            self.admin.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(self.logs())
        self.close()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas)

    def __getitem__(self, number: int) -> Replica:
        return self.replicas[number]

    def logs(self, lines: int = 40) -> str:
        """Return the end of every replica's log, for the output of a failed test."""
        return "\n".join(f"--- {replica!r}\n{replica.log_tail(lines)}" for replica in self.replicas)

    def assert_all_alive(self) -> None:
        """Assert that every replica runs; the error shows the log of each one that has ended."""
        ended = [f"{r.name} ended ({r.exit_code}):\n{r.log_tail()}" for r in self if not r.alive]
        if ended:
            raise AssertionError("\n".join(ended))

    def heal(self) -> None:
        """Resume paused replicas and start ended ones."""
        for replica in self.replicas:
            replica.resume()
            replica.start()

    # -- leadership

    @cached_property
    def admin(self) -> redis.Redis:
        """Client of the lease's Redis. Raises ValueError if `admin_url` is no URL of a Redis."""
        return redis.Redis.from_url(self._admin_url, decode_responses=True, socket_timeout=2.0)

    def key(self, name: str) -> str:
        """Return the Redis key of this cluster's `lease`, `ledger`, `journal`, ..."""
        return f"{{ha-beat:{self.name}}}:{name}"

    def lease(self) -> dict[str, str]:
        """Return the lease record; empty if there is none. Raises redis errors."""
        return self.admin.hgetall(self.key("lease"))

    def epoch(self) -> int | None:
        """Return the epoch of the lease record."""
        text = self.lease().get("epoch")
        return int(text) if text else None

    def leader(self) -> Replica | None:
        """Return the replica that holds the lease, found by its pid; None if no replica does."""
        record = self.lease()
        if record.get("state") != "held":
            return None
        return next((r for r in self.replicas if r.alive and str(r.pid) == record.get("pid")), None)

    def standbys(self) -> list[Replica]:
        """Return the running, unpaused replicas that do not lead."""
        leader = self.leader()
        return [replica for replica in self.replicas if replica.alive and not replica.paused and replica is not leader]

    def wait_for_leader(self, timeout: float = 30.0, other_than: Replica | None = None) -> Replica:
        """Wait until a replica (other than one, if given) leads."""

        def led_by() -> Replica | None:
            leader = self.leader()
            return None if leader is other_than else leader

        try:
            return wait_for(led_by, timeout, f"a leader of {self.name}", 0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def wait_for_presence(self, timeout: float = 30.0) -> None:
        """Wait until the lease names a presence channel and the standbys have had time to read it."""
        wait_for(lambda: self.lease().get("presence"), timeout, "the leader's presence")
        time.sleep(0.5)

    def wait_until_up(self, timeout: float = 30.0) -> None:
        """Wait until every replica has logged that beat is starting (imports done, signal handlers set)."""
        if self.log_level in ("DEBUG", "INFO"):
            for replica in self.replicas:
                replica.wait_for_log("beat: Starting...", timeout)

    def wait_for_epoch_above(self, epoch: int, timeout: float = 30.0) -> int:
        """Wait until the epoch has risen above `epoch`, and return it."""
        return wait_for(
            lambda: now if (now := self.epoch() or 0) > epoch else None, timeout, f"an epoch above {epoch}", 0.01
        )

    # -- records

    def journal(self, server: redis.Redis | None = None) -> list[dict[str, Any]]:
        """Return the journal's records, oldest first. Another server than the lease's Redis may be given."""
        stream = (server or self.admin).xrange(self.key("journal"))
        return [json.loads(fields["d"]) for _, fields in stream if "d" in fields]

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return the ledger's rows by entry."""
        rows = self.admin.hgetall(self.key("ledger"))
        return {name[2:]: json.loads(row) for name, row in rows.items() if name.startswith("e:")}


def _one_each(urls: str | Sequence[str], count: int) -> list[str]:
    each = [urls] * count if isinstance(urls, str) else list(urls)
    if len(each) != count:
        raise ValueError(f"{len(each)} URLs for {count} replicas")
    return each


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
