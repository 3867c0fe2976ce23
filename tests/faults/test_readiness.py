"""Replicas that are alive and unable to lead: `/livez`, `/readyz`, `check` and metrics, second by second."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.faults.cluster import REPOSITORY, BeatCluster, base_environment
from tests.faults.proxy import TcpProxy
from tests.integration.monitoring.support import ask
from tests.support.servers import RedisServer, free_port, need, wait_for

SETTINGS = {"lease_ttl": 3, "command_timeout": 1}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with need(RedisServer) as server:
        yield server


@pytest.fixture
def broker() -> Iterator[TcpProxy]:
    """Return a way to another Redis, which can drop packets."""
    with need(RedisServer) as other, TcpProxy.for_url(other.url) as proxy:
        yield proxy


def check(cluster: BeatCluster, broker_url: str, lease_url: str) -> int:
    command = [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "ha-beat", "check"]
    env = base_environment({"BROKER_URL": broker_url, "HA_BEAT_CLUSTER": cluster.name, "HA_BEAT_REDIS_URL": lease_url})
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode


def metric(port: int, name: str) -> float:
    lines = ask(port, "/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"ha_beat_{name} "))


def ready(port: int) -> int:
    try:
        return ask(port, "/readyz").status
    except OSError:
        return 0


@pytest.mark.slow
def test_replicas_without_a_broker_are_alive_and_not_ready(server: RedisServer, broker: TcpProxy):
    """The broker's port drops packets from the start; the lease's Redis answers."""
    ports = [free_port(), free_port()]
    broker_url = broker.url("redis://127.0.0.1/0")
    broker.blackhole("request", "reply")
    with BeatCluster(
        broker_url,
        lease_urls=server.url,
        spec={"fast": {"every": 0.5}},
        replicas=2,
        settings=SETTINGS,
        replica_env=[{"HA_BEAT_HTTP_BIND": f"127.0.0.1:{port}"} for port in ports],
    ) as cluster:
        cluster.wait_until_up()
        wait_for(lambda: all(ready(port) for port in ports), 30, "the endpoints")
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for port in ports:
                assert ask(port, "/livez").status == 200
                answer = ask(port, "/readyz")
                assert answer.status == 503
                assert metric(port, "taken_up") == 0
                assert metric(port, "ready") == 0
            time.sleep(1)
        assert all("broker_unreachable" in ask(port, "/readyz").text for port in ports)
        assert check(cluster, broker_url, server.url) == 1

        broker.heal()
        wait_for(lambda: all(ready(port) == 200 for port in ports), 60, "ready replicas", 0.5)
        wait_for(lambda: sum(metric(port, "taken_up") for port in ports) == 1, 30, "one that has taken up", 0.5)
        assert check(cluster, broker_url, server.url) == 0
        # Away again: the leader, too, is no longer ready, and it enqueues nothing.
        broker.blackhole("request", "reply")
        wait_for(lambda: all(ready(port) == 503 for port in ports), 60, "replicas that are not ready", 0.5)
        assert check(cluster, broker_url, server.url) == 1
        assert all(ask(port, "/livez").status == 200 for port in ports)
        cluster.assert_all_alive()


@pytest.mark.slow
def test_systemd_is_told_when_a_replica_is_ready(server: RedisServer, tmp_path):
    """The watchdog is fed while the main loop makes progress."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(30)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        with BeatCluster(server.url, spec={"fast": {"every": 0.5}}, replicas=1, env=env) as cluster:
            messages: list[str] = []
            while not any("READY=1" in message for message in messages):
                messages.append(receiver.recv(1000).decode())
            assert "WATCHDOG=1" in messages[-1]
            cluster[0].pause()
            time.sleep(1)
            receiver.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while True:
                    receiver.recv(1000)
            cluster[0].resume()
            receiver.settimeout(10)
            assert receiver.recv(1000) == b"WATCHDOG=1"
            os.kill(cluster[0].pid, 15)
