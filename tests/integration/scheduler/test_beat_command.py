"""`celery beat` with its own options, and the beat that a worker embeds: real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import BeatCluster, base_environment, ha_scheduler
from tests.support.servers import RedisServer, ServerProcess, wait_for

CELERY = tuple(int(part) for part in version("celery").split(".")[:2])
SPEC = {"fast": {"every": 0.2}}


def enqueued(server: RedisServer) -> int:
    return int(server.admin.xlen("{ha-beat:tick}:journal"))


def lease(server: RedisServer) -> dict[str, str]:
    found: Any = server.admin.hgetall("{ha-beat:tick}:lease")
    return dict(found)


@pytest.fixture
def one_beat(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[BeatCluster]:
    arguments: Sequence[str] = getattr(request, "param", ())
    with BeatCluster(redis_server.url, spec=SPEC, replicas=1, beat_args=arguments) as cluster:
        yield cluster


def test_a_pidfile_is_written_and_removed(redis_server: RedisServer, tmp_path):
    """The release of the lease does not keep Celery from removing it."""
    pidfile = tmp_path / "beat.pid"
    with BeatCluster(redis_server.url, spec=SPEC, replicas=1, beat_args=[f"--pidfile={pidfile}"]) as cluster:
        cluster.wait_for_leader()
        assert int(pidfile.read_text()) == cluster[0].pid
        assert cluster[0].terminate() == 0
        assert not pidfile.exists()
    assert lease(redis_server)["state"] == "released"


@pytest.mark.slow
def test_a_detached_beat_leads_and_lets_go(redis_server: RedisServer, tmp_path):
    """`--detach`: the daemon, not the process that forked it, has the lease, the pid file and the log."""
    pidfile, logfile = tmp_path / "beat.pid", tmp_path / "beat.log"
    environment = {"BROKER_URL": redis_server.url, "BEAT_SPEC": json.dumps(SPEC), "HA_BEAT_CLUSTER": "tick"}
    starter = ServerProcess(
        [
            *(
                sys.executable,
                "-m",
                "celery",
                "-A",
                "tests.support.apps.tick_app",
                "beat",
                "-S",
                ha_scheduler(),
                "--detach",
            ),
            *(f"--pidfile={pidfile}", f"--logfile={logfile}", "-l", "INFO"),
        ],
        tmp_path / "starter.log",
        cwd=tmp_path,
        env=base_environment(environment),
    )
    try:
        assert starter.wait(20) == 0, starter.log_tail()
        wait_for(lambda: enqueued(redis_server) > 3, 20, "dispatches of the daemon")
        daemon = int(pidfile.read_text())
        assert daemon != starter.pid
        assert lease(redis_server)["pid"] == str(daemon)
        os.kill(daemon, signal.SIGTERM)
        wait_for(lambda: _has_ended(str(daemon)), 15, "the end of the daemon")
        assert lease(redis_server)["state"] == "released"
        assert not pidfile.exists()
        log = logfile.read_text()
        assert "action=term_started" in log
        assert "Traceback" not in log, log
    finally:
        if pidfile.exists():
            _kill(int(pidfile.read_text()))
        starter.kill()


@pytest.mark.parametrize("one_beat", [["--max-interval=1"]], indirect=True)
def test_max_interval_only_bounds_the_wait(one_beat):
    """More frequent entries are still enqueued when they are due."""
    one_beat.wait_for_leader()
    wait_for(lambda: len(one_beat.journal()) > 10, 20, "dispatches")
    due = [record["at"] for record in one_beat.journal() if record.get("verdict") == "enqueued"]
    assert len(set(due)) == len(due)


def test_schedule_file_is_not_written_and_a_warning_is_logged(one_beat: BeatCluster):
    """The option is accepted so that old command lines work; the run state is in the ledger."""
    one_beat.wait_for_leader()
    one_beat[0].wait_for_log("action=schedule_file_ignored")
    assert one_beat[0].terminate() == 0
    assert [path.name for path in one_beat[0].directory.iterdir() if path.name.startswith("schedule")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_beat_cleanly_and_release_the_lease(number, one_beat: BeatCluster, redis_server: RedisServer):
    """Beat is busy, and the signal may arrive twice."""
    one_beat.wait_for_leader()
    wait_for(lambda: enqueued(redis_server) > 3, 20, "dispatches")
    process = one_beat[0].process
    process.send(number)
    process.send(number)
    assert process.wait(15) == 0
    assert lease(redis_server)["state"] == "released"
    assert "Traceback" not in one_beat[0].log_text(), one_beat[0].log_tail()


@pytest.mark.slow
@pytest.mark.skipif(CELERY < (5, 7), reason="beat answers remote control since Celery 5.7")
def test_leader_and_standby_answer_inspect_ping(redis_server: RedisServer):
    """With --enable-remote-control: a standby that waits inside its tick is alive."""
    with BeatCluster(redis_server.url, spec=SPEC, replicas=2, beat_args=["--enable-remote-control"]) as cluster:
        cluster.wait_for_leader()
        cluster.wait_until_up()
        env = base_environment({"BROKER_URL": redis_server.url})
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.support.apps.tick_app",
            "inspect",
            "ping",
            "--json",
            "-t",
            "4",
        ]

        def answers() -> bool:
            ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=40, check=False)
            found = json.loads(ran.stdout) if ran.stdout.strip().startswith("{") else {}
            return ran.returncode == 0 and "pong" in json.dumps(found)

        wait_for(answers, 45, "an answer to inspect ping")
        cluster.assert_all_alive()


@pytest.mark.slow
def test_a_program_that_gevent_has_patched(redis_server: RedisServer):
    """Main loop, election and endpoint share one thread, and signals arrive in gevent's hub, where nothing may wait."""
    if find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    settings = {"http_bind": "127.0.0.1:0"}
    with BeatCluster(
        redis_server.url, spec=SPEC, replicas=2, app="tests.support.apps.gevent_app", settings=settings
    ) as cluster:
        first = cluster.wait_for_leader()
        cluster.wait_until_up()
        first.kill()
        second = cluster.wait_for_leader(other_than=first)
        before = enqueued(redis_server)
        wait_for(lambda: enqueued(redis_server) > before + 3, 20, "dispatches")
        assert second.terminate() == 0
        assert lease(redis_server)["state"] == "released"
        assert "Traceback" not in second.log_text(), second.log_tail(60)


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_the_beat_that_a_worker_embeds(pool, redis_server: RedisServer, tmp_path):
    """The forked process has its own connections, enqueues, and ends with the worker."""
    worker = ServerProcess(
        [
            *(sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "worker", "-P", pool, "-c", "1"),
            *("-B", "--scheduler", ha_scheduler(), "-l", "INFO", "-s", str(tmp_path / "schedule")),
        ],
        tmp_path / "worker.log",
        cwd=tmp_path,
        env=base_environment(
            {"BROKER_URL": redis_server.url, "BEAT_SPEC": json.dumps(SPEC), "HA_BEAT_CLUSTER": "tick"}
        ),
    )
    try:
        wait_for(lambda: worker.log_text().count("] succeeded in") > 5, 45, "tasks that ran")
        record = lease(redis_server)
        assert record["state"] == "held"
        assert int(record["pid"]) != worker.pid, "beat runs in a process of its own"
        assert worker.stop(30, signal.SIGTERM) == 0, worker.log_tail()
        wait_for(lambda: lease(redis_server)["state"] == "released", 10, "the release")
        wait_for(lambda: _has_ended(record["pid"]), 10, "the end of the embedded beat")
        before = enqueued(redis_server)
        time.sleep(0.6)
        assert enqueued(redis_server) == before
        assert "Traceback" not in worker.log_text(), worker.log_tail(60)
    finally:
        if worker.alive:
            worker.kill()


def _has_ended(pid: str) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_a_second_beat_of_an_orphaned_worker_is_fenced(redis_server: RedisServer, tmp_path):
    """After SIGKILL of a worker its beat goes on. Another beat stands by until that one ends."""
    env = base_environment({"BROKER_URL": redis_server.url, "BEAT_SPEC": json.dumps(SPEC), "HA_BEAT_CLUSTER": "tick"})
    worker = ServerProcess(
        [
            *(sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "worker", "-P", "solo"),
            *("-B", "--scheduler", ha_scheduler(), "-l", "INFO", "-s", str(tmp_path / "schedule")),
        ],
        tmp_path / "worker.log",
        cwd=tmp_path,
        env=env,
    )
    try:
        wait_for(lambda: enqueued(redis_server) > 3, 40, "dispatches of the embedded beat")
        orphan = int(lease(redis_server)["pid"])
        _kill(worker.pid)
        with BeatCluster(redis_server.url, spec=SPEC, replicas=1) as cluster:
            cluster.wait_until_up()
            wait_for(lambda: enqueued(redis_server) > 10, 20, "dispatches")
            _kill(orphan)
            cluster.wait_for_leader()
            before = enqueued(redis_server)
            wait_for(lambda: enqueued(redis_server) > before + 3, 20, "dispatches of the other one")
            due = [record["at"] for record in cluster.journal() if record.get("verdict") == "enqueued"]
            assert len(set(due)) == len(due)
    finally:
        worker.kill()


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
