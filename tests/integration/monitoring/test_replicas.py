"""Tests of the endpoint of real replicas, probed as by Kubernetes, during faults."""

import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from tests.faults.cluster import BeatCluster, Replica, base_environment, ha_scheduler
from tests.integration.monitoring.support import LOCALHOST, ask
from tests.support.commands import ROOT
from tests.support.servers import PartMissing, ServerProcess, free_port, need, wait_for

SPEC = {"fast": {"every": 0.2}}


class Probed(BeatCluster):
    """Cluster in which each replica serves HTTP."""

    def __init__(self, url: str, replicas: int = 3, **options: object) -> None:
        self.ports = [free_port() for _ in range(replicas)]
        env = [{"HA_BEAT_HTTP_BIND": f"{LOCALHOST}:{port}"} for port in self.ports]
        super().__init__(url, replicas=replicas, replica_env=env, **{"spec": SPEC, **options})  # type: ignore[arg-type]

    def port(self, replica: Replica) -> int:
        return self.ports[self.replicas.index(replica)]

    def says(self, replica: Replica, path: str) -> int:
        """Return the HTTP status, 0 without an answer."""
        try:
            return ask(self.port(replica), path).status
        except OSError:
            return 0

    def probes(self, replica: Replica) -> tuple[int, int, int]:
        return self.says(replica, "/livez"), self.says(replica, "/readyz"), self.says(replica, "/leader")

    def expect(self, condition: Callable[[], Any], timeout: float = 20.0) -> Any:
        """Wait until the condition is true, and return its value. A failure shows the probes and the logs."""
        try:
            return wait_for(condition, timeout, "", 0.1)
        except AssertionError:
            found = {replica.name: self.probes(replica) for replica in self}
            raise AssertionError(f"{found}\n{self.logs()}") from None

    def until(self, replica: Replica, probes: tuple[int, int, int], timeout: float = 20.0) -> None:
        """Wait until the replica answers its probes with these statuses."""
        self.expect(lambda: self.probes(replica) == probes, timeout)

    def settle(self) -> Replica:
        """Wait until one replica leads and all are ready."""

        def settled() -> Replica | None:
            # Read each time, because a busy machine may delay the first leader until another takes over.
            leader = self.leader()
            ready = all(self.probes(one) == (200, 200, 200 if one is leader else 503) for one in self)
            return leader if ready else None

        leader: Replica = self.expect(settled, 60)
        return leader


@pytest.mark.slow
def test_probes_follow_a_takeover_from_a_killed_leader(redis_server):
    with Probed(redis_server.url) as cluster:
        leader = cluster.settle()
        leader.kill()
        successor = cluster.wait_for_leader(other_than=leader)
        cluster.until(successor, (200, 200, 200))
        (other,) = [replica for replica in cluster if replica not in {leader, successor}]
        assert cluster.probes(leader) == (0, 0, 0)
        assert cluster.probes(other) == (200, 200, 503)
        wait_for(
            lambda: len(ask(cluster.port(other), "/status").json()["members"]) == 2,
            20,
            "the removal of the dead replica",
        )

        def terms():
            found: list[dict[str, Any]] = ask(cluster.port(other), "/status").json()["terms"][-2:]
            return found if len(found) == 2 else []

        before, after = wait_for(terms, 20, "both terms")
        assert [term["by"].partition(":")[0] for term in (before, after)] == [leader.name, successor.name]
        assert 0 < after["gap_ms"] < 5000
        assert before["end_reason"] == "leader_gone"


@pytest.mark.slow
def test_hung_leader_is_not_live_hands_over_and_recovers(redis_server, tmp_path):
    """The process and its election thread work; only the main loop hangs."""
    hang = tmp_path / "hang"
    spec = {**SPEC, "hanging": {"every": 0.5, "kwargs": {"hangs": True}}}
    options = {"spec": spec, "app": "tests.support.apps.lazy_app", "env": {"HANG_FILE": str(hang)}}
    with Probed(redis_server.url, 2, settings={"stall_timeout": 2, "lease_ttl": 4}, **options) as cluster:
        leader = cluster.settle()
        hang.write_text(leader.name)
        successor = cluster.wait_for_leader(other_than=leader)
        cluster.until(leader, (503, 503, 503))
        assert "not live: stalled" in ask(cluster.port(leader), "/livez").text
        cluster.until(successor, (200, 200, 200))
        hang.unlink()
        cluster.until(leader, (200, 200, 503))


@pytest.mark.slow
def test_without_redis_all_replicas_are_live_and_none_is_ready(redis_server):
    with Probed(redis_server.url, replicas=2, settings={"lease_ttl": 3}) as cluster:
        cluster.settle()
        redis_server.kill()
        for replica in cluster:
            cluster.until(replica, (200, 503, 503))
            began = time.monotonic()
            status = ask(cluster.port(replica), "/status").json()
            assert time.monotonic() - began < 5, "the answer came from memory"
            assert status["redis"]["reachable"] is False
            assert "redis_unreachable" in {warning["code"] for warning in status["warnings"]}
            assert "ha_beat_redis_up 0.0" in ask(cluster.port(replica), "/metrics").text
        redis_server.start()
        cluster.settle()


@pytest.mark.slow
def test_stopped_replica_removes_its_member_record(redis_server):
    with Probed(redis_server.url, replicas=2) as cluster:
        leader = cluster.settle()
        (standby,) = cluster.standbys()
        assert len(cluster.admin.hkeys(cluster.key("members"))) == 2
        for replica in (standby, leader):
            replica.terminate()
            left = cluster.admin.hvals(cluster.key("members"))
            assert replica.pid not in {json.loads(record)["pid"] for record in left}


@pytest.mark.slow
def test_standby_without_http_writes_only_its_member_record(redis_server):
    with BeatCluster(redis_server.url, replicas=2, settings={"lease_ttl": 30}) as cluster:
        leader = cluster.wait_for_leader()
        admin = cluster.admin
        wait_for(lambda: len(admin.hgetall(cluster.key("members"))) == 2, 20, "two members")
        (standby,) = cluster.standbys()
        leader.pause()  # so that every write is the standby's
        time.sleep(0.5)
        seen: list[str] = []
        with admin.monitor() as monitor:
            ended = time.monotonic() + 5
            while time.monotonic() < ended:
                seen.append(monitor.next_command()["command"])
        leader.resume()
        members = [json.loads(record) for record in admin.hvals(cluster.key("members"))]
        assert {member["pid"]: member["role"] for member in members}[standby.pid] == "standby"
        reading = {"CLIENT", "EVALSHA", "HELLO", "HGET", "HGETALL", "HLEN", "HMGET", "INFO", "TIME", "PUBSUB", "PING"}
        reading |= {"XLEN", "XRANGE", "XREVRANGE"}
        writes = [command.split()[:2] for command in seen if command.split()[0].upper() not in reading]
        assert {tuple(write) for write in writes} == {("HSET", cluster.key("members"))}


@pytest.mark.slow
def test_taken_port_stops_beat_with_one_line(redis_server):
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        address = f"{LOCALHOST}:{taken.getsockname()[1]}"
        with BeatCluster(redis_server.url, replicas=1, settings={"http_bind": address}) as cluster:
            replica = cluster[0]
            wait_for(lambda: not replica.alive, 30, "the end of the replica")
            assert replica.exit_code not in {0, None}
            (line,) = [line for line in replica.log_text().splitlines() if "can't start" in line]
            assert f"ha_beat can't start: ha_beat_http_bind={address}: " in line
            assert "Traceback" not in replica.log_text()


def late_by(cluster: BeatCluster, since: float) -> list[float]:
    """Return the lateness in seconds of the messages enqueued since then."""
    return sorted(
        record["ms"] / 1000 - datetime.fromisoformat(record["at"]).timestamp()
        for record in cluster.journal()
        if record.get("verdict") == "enqueued" and record["ms"] / 1000 >= since
    )


@contextlib.contextmanager
def many_requests(port: int) -> Iterator[None]:
    """Send requests without a pause on several connections."""
    ended, answered = threading.Event(), []

    def client() -> None:
        with socket.create_connection((LOCALHOST, port), timeout=10) as connection:
            while not ended.is_set():
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
                reply = b""
                while reply.count(b"live\n") < 10:
                    reply += connection.recv(65536)
                answered.append(10)

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client) for _ in range(8)]
        try:
            yield
        finally:
            ended.set()
    for each in clients:
        each.result()
    assert sum(answered) > 1000, "the load was none"


@contextlib.contextmanager
def slow_clients(port: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            client = stack.enter_context(socket.create_connection((LOCALHOST, port), timeout=10))
            with contextlib.suppress(OSError):
                client.send(b"GET /livez HTTP/1.1\r\nX: ")
        yield
        assert ask(port, "/livez").status == 200


@pytest.mark.slow
def test_load_on_the_endpoint_does_not_delay_the_scheduler(redis_server):
    """The leader gets thousands of requests a second, and 2,000 clients that never finish theirs."""
    with Probed(redis_server.url, replicas=1) as cluster:
        leader = cluster.settle()
        for load in (contextlib.nullcontext, many_requests, slow_clients, contextlib.nullcontext):
            with load(cluster.port(leader)):
                since = time.time()
                time.sleep(4)
                late = late_by(cluster, since)
            print(f"{load.__name__}: median {statistics.median(late) * 1000:.1f} ms of {len(late)}")
            assert len(late) >= 14, f"{load.__name__}: occurrences went missing"
            # Half the entry's period would still be nothing that an operator calls late.
            assert statistics.median(late) < 0.1, load.__name__
        assert cluster.leader() is leader


def promtool() -> str:
    if (path := shutil.which("promtool")) is None:
        raise PartMissing("promtool is not on PATH (Debian: apt-get install prometheus)")
    return path


def test_metrics_pass_promtool_check(redis_server):
    command = [need(promtool), "check", "metrics"]
    with Probed(redis_server.url, replicas=1, settings={"metrics_per_entry": True}) as cluster:
        leader = cluster.settle()

        def metrics():
            reply = ask(cluster.port(leader), "/metrics")
            return reply if 'ha_beat_entry_occurrences_total{entry="fast",verdict="enqueued"}' in reply.text else None

        reply = wait_for(metrics, 20, "the first occurrence")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        checked = subprocess.run(command, input=reply.text, capture_output=True, text=True, check=False, timeout=200)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.slow
def test_beat_inside_a_worker_serves_http(redis_server, tmp_path):
    """`worker -B` forks beat: endpoint, metrics and membership must be the child's."""
    port = free_port()
    env = base_environment({"BROKER_URL": redis_server.url, "BEAT_SPEC": json.dumps(SPEC)})
    env |= {"HA_BEAT_HTTP_BIND": f"{LOCALHOST}:{port}", "HA_BEAT_CLUSTER": "embedded", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "worker", "-B", "-c", "1"]
    command += ["-P", "prefork", "--scheduler", ha_scheduler(), "-s", str(tmp_path / "schedule"), "-l", "INFO"]
    process = ServerProcess(command, tmp_path / "worker.log", cwd=tmp_path, env=env)
    try:

        def enqueued():
            found = re.search(r'occurrences_total\{verdict="enqueued"\} (\d+)', ask(port, "/metrics").text)
            return found is not None and int(found[1]) > 3

        wait_for(enqueued, 40, "metrics of the beat inside the worker", 0.2)
        status = ask(port, "/status").json()
        assert status["replica"]["role"] == "leader"
        assert status["replica"]["pid"] not in {process.pid, os.getpid()}
    finally:
        process.kill()
