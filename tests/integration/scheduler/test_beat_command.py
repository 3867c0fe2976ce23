"""Processes of `celery beat` with its options, and of a worker that embeds beat."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.cluster import BeatCluster, base_environment, ha_scheduler
from tests.support.servers import RedisServer, ServerProcess, wait_for

CELERY = tuple(int(part) for part in version("celery").split(".")[:2])
SPEC = {"fast": {"every": 0.2}}
COMMAND = [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app"]


def enqueued(server: RedisServer) -> int:
    return int(server.admin.xlen("{ha-beat:tick}:journal"))


def wait_for_more(server: RedisServer, *, timeout: float = 20) -> None:
    before = enqueued(server)
    wait_for(lambda: enqueued(server) > before + 3, timeout, "dispatches")


def lease(server: RedisServer) -> dict[str, str]:
    return dict(server.admin.hgetall("{ha-beat:tick}:lease"))


def assert_no_occurrence_twice(cluster: BeatCluster) -> None:
    due = [record["at"] for record in cluster.journal() if record.get("verdict") == "enqueued"]
    assert len(set(due)) == len(due)


def has_ended(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def start(server: RedisServer, log: Path, *arguments: str) -> ServerProcess:
    """Start a `celery` command with this schedule."""
    env = base_environment({"BROKER_URL": server.url, "BEAT_SPEC": json.dumps(SPEC), "HA_BEAT_CLUSTER": "tick"})
    return ServerProcess([*COMMAND, *arguments, "-l", "INFO"], log, cwd=log.parent, env=env)


@contextmanager
def worker_with_beat(server: RedisServer, tmp_path: Path, pool: str) -> Iterator[ServerProcess]:
    beat = ("-B", "--scheduler", ha_scheduler(), "-s", str(tmp_path / "schedule"))
    worker = start(server, tmp_path / "worker.log", "worker", "-P", pool, "-c", "1", *beat)
    try:
        yield worker
    finally:
        worker.kill()


@pytest.mark.slow
def test_detached_beat_leads_and_releases_the_lease(redis_server: RedisServer, tmp_path):
    """The daemon has the lease, the pid file and the log, not the process that forked it."""
    pidfile, logfile = tmp_path / "beat.pid", tmp_path / "beat.log"
    detached = ("--detach", f"--pidfile={pidfile}", f"--logfile={logfile}")
    starter = start(redis_server, tmp_path / "starter.log", "beat", "-S", ha_scheduler(), *detached)
    try:
        assert starter.wait(20) == 0, starter.log_tail()
        wait_for_more(redis_server)
        daemon = int(pidfile.read_text())
        assert daemon != starter.pid
        assert lease(redis_server)["pid"] == str(daemon)
        os.kill(daemon, signal.SIGTERM)
        wait_for(lambda: has_ended(daemon), 15, "the end of the daemon")
        assert lease(redis_server)["state"] == "released"
        assert not pidfile.exists()
        log = logfile.read_text()
        assert "action=term_started" in log
        assert "Traceback" not in log, log
    finally:
        if pidfile.exists():
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
        starter.kill()


@pytest.mark.slow
def test_max_interval_only_bounds_the_wait(redis_server: RedisServer):
    """More frequent entries are still enqueued when they are due."""
    with BeatCluster(redis_server.url, spec=SPEC, replicas=1, beat_args=["--max-interval=1"]) as cluster:
        wait_for(lambda: len(cluster.journal()) > 10, 20, "dispatches")
        assert_no_occurrence_twice(cluster)


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, "before"), (signal.SIGINT, "after")])
def test_beat_writes_no_schedule_file_and_ends_cleanly_by_signal(number, moment, redis_server: RedisServer, tmp_path):
    """Beat is busy, and the signal arrives twice. Celery removes the pid file."""
    pidfile = tmp_path / "beat.pid"
    options = {
        "scheduler": "tests.support.apps.signalled_app:SignalledScheduler",
        "beat_args": [f"--pidfile={pidfile}"],
        "env": {"SECOND_SIGNAL": str(int(number)), "MOMENT": moment},
    }
    with BeatCluster(redis_server.url, spec=SPEC, replicas=1, **options) as cluster:
        beat = cluster.wait_for_leader()
        assert int(pidfile.read_text()) == beat.pid
        # The option -s is accepted so that old command lines work; the run state is in the ledger.
        beat.wait_for_log("action=schedule_file_ignored")
        wait_for_more(redis_server)
        beat.process.send(number)
        assert beat.process.wait(15) == 0
        assert not pidfile.exists()
        assert list(beat.directory.glob("schedule*")) == []
        assert lease(redis_server)["state"] == "released"
        assert "Traceback" not in beat.log_text(), beat.log_tail()


@pytest.mark.slow
@pytest.mark.skipif(CELERY < (5, 7), reason="beat answers remote control since Celery 5.7")
def test_leader_and_standby_answer_inspect_ping(redis_server: RedisServer):
    """A standby waits inside its tick, and must still answer."""
    with BeatCluster(redis_server.url, spec=SPEC, replicas=2, beat_args=["--enable-remote-control"]) as cluster:
        cluster.wait_for_leader()
        cluster.wait_until_up()
        env = base_environment({"BROKER_URL": redis_server.url})
        command = [*COMMAND, "inspect", "ping", "--json", "-t", "4"]

        def answers() -> bool:
            ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
            found = json.loads(ran.stdout) if ran.stdout.strip().startswith("{") else {}
            return ran.returncode == 0 and "pong" in json.dumps(found)

        wait_for(answers, 45, "an answer to inspect ping")
        cluster.assert_all_alive()


@pytest.mark.slow
def test_beat_patched_by_gevent_takes_over_and_releases(redis_server: RedisServer):
    """Signal handlers run in gevent's hub, which must not wait."""
    if find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    options = {"app": "tests.support.apps.gevent_app", "settings": {"http_bind": "127.0.0.1:0"}}
    with BeatCluster(redis_server.url, spec=SPEC, replicas=2, **options) as cluster:
        first = cluster.wait_for_leader()
        cluster.wait_until_up()
        first.kill()
        second = cluster.wait_for_leader(other_than=first)
        wait_for_more(redis_server)
        assert second.terminate() == 0
        assert lease(redis_server)["state"] == "released"
        assert "Traceback" not in second.log_text(), second.log_tail(60)


@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("solo", "threads"))]
)
def test_beat_embedded_in_a_worker_enqueues_and_ends_with_it(pool, redis_server: RedisServer, tmp_path):
    """The forked process has its own connections."""
    with worker_with_beat(redis_server, tmp_path, pool) as worker:
        wait_for(lambda: worker.log_text().count("] succeeded in") > 5, 45, "tasks that ran")
        assert lease(redis_server)["state"] == "held"
        beat = int(lease(redis_server)["pid"])
        assert beat != worker.pid, "beat runs in the worker's process"
        assert worker.stop(30, signal.SIGTERM) == 0, worker.log_tail()
        wait_for(lambda: lease(redis_server)["state"] == "released", 10, "the release")
        wait_for(lambda: has_ended(beat), 10, "the end of the embedded beat")
        before = enqueued(redis_server)
        time.sleep(0.6)
        assert enqueued(redis_server) == before
        assert "Traceback" not in worker.log_text(), worker.log_tail(60)


@pytest.mark.slow
def test_second_beat_stands_by_while_an_orphaned_one_leads(redis_server: RedisServer, tmp_path):
    """After SIGKILL of a worker its embedded beat continues. Another beat takes over when that one ends."""
    with worker_with_beat(redis_server, tmp_path, "solo") as worker:
        wait_for_more(redis_server, timeout=40)
        orphan = int(lease(redis_server)["pid"])
        os.kill(worker.pid, signal.SIGKILL)
        with BeatCluster(redis_server.url, spec=SPEC, replicas=1) as cluster:
            cluster.wait_until_up()
            wait_for(lambda: enqueued(redis_server) > 10, 20, "dispatches")
            os.kill(orphan, signal.SIGKILL)
            cluster.wait_for_leader()
            wait_for_more(redis_server)
            assert_no_occurrence_twice(cluster)
