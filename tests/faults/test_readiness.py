"""Replicas that are alive but can't lead, by `/livez`, `/readyz`, `check` and metrics, second by second."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import BeatCluster
from tests.faults.proxy import TcpProxy
from tests.integration.monitoring.support import ask
from tests.integration.monitoring.test_replicas import Probed
from tests.support.commands import ROOT, run
from tests.support.servers import RedisServer, need, wait_for

SETTINGS = {"lease_ttl": 3, "command_timeout": 1}
SPEC = {"fast": {"every": 0.5}}
POSTGRES = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": 1, "NAME": "none"}

#: Schedules that refuse connections: the package that they need, and options of `BeatCluster`.
UNREADABLE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "django": (
        "psycopg",
        {
            "scheduler": "ha_beat.django.schedulers:HADatabaseScheduler",
            "app": "tests.integration.django.project.app",
            "env": {
                "DJANGO_SETTINGS_MODULE": "tests.integration.django.project.settings",
                "SITE_DATABASE": json.dumps(POSTGRES),
            },
        },
    ),
    "sqlalchemy": (
        "sqlalchemy_celery_beat",
        {
            "scheduler": "ha_beat.sqlalchemy",
            "app": "tests.integration.sqlalchemy.app",
            "env": {"ROWS_URL": "postgresql+psycopg://user@127.0.0.1:1/none"},
        },
    ),
    "redbeat": ("redbeat", {"scheduler": "ha_beat.redbeat", "config": {"redbeat_redis_url": "redis://127.0.0.1:1/0"}}),
}


@pytest.fixture
def broker() -> Iterator[TcpProxy]:
    """Return a proxy of another Redis."""
    with need(RedisServer) as other, TcpProxy.for_url(other.url) as proxy:
        yield proxy


def check(cluster: BeatCluster, *args: str) -> int:
    """Return the exit status of `ha-beat check` in the environment of the first replica."""
    command = [sys.executable, "-m", "celery", "-A", cluster.app, "ha-beat", "check", *args]
    done = run(*command, cwd=ROOT, env=cluster[0].env)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def metric(port: int, name: str) -> float:
    lines = ask(port, "/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"ha_beat_{name} "))


def wait_for_readiness(cluster: Probed, status: int) -> None:
    wait_for(lambda: {cluster.says(each, "/readyz") for each in cluster} == {status}, 60, f"{status} at /readyz", 0.5)


def assert_alive_and_not_ready(cluster: Probed, reason: str, seconds: float) -> None:
    """Assert for some seconds that every replica is alive and not ready, for this reason."""
    wait_for_readiness(cluster, 503)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for replica in cluster:
            port = cluster.port(replica)
            assert (cluster.says(replica, "/livez"), cluster.says(replica, "/readyz")) == (200, 503)
            assert metric(port, "ready") == 0
        time.sleep(1)
    assert all(reason in ask(port, "/readyz").text for port in cluster.ports)
    assert check(cluster) == 1
    assert check(cluster, "--replica", cluster[0].name) == 1
    cluster.assert_all_alive()


@pytest.mark.slow
@pytest.mark.parametrize("store", UNREADABLE)
def test_replicas_without_a_schedule_are_alive_and_do_not_lead(redis_server: RedisServer, store: str):
    """The schedule's database, or redbeat's Redis, refuses connections from the start."""
    package, options = UNREADABLE[store]
    pytest.importorskip(package)
    with Probed(redis_server.url, replicas=2, settings=SETTINGS, **options) as cluster:
        assert_alive_and_not_ready(cluster, "schedule_unread", 10)
        assert [metric(port, "taken_up") for port in cluster.ports] == [0, 0]
        assert cluster.lease() == {}


@pytest.mark.slow
def test_replicas_without_a_broker_are_alive_and_not_ready(redis_server: RedisServer, broker: TcpProxy):
    """The broker's port drops packets from the start; the lease's Redis answers."""
    broker.blackhole()
    url = broker.url("redis://127.0.0.1/0")
    with Probed(url, replicas=2, lease_urls=redis_server.url, spec=SPEC, settings=SETTINGS) as cluster:
        assert_alive_and_not_ready(cluster, "broker_unreachable", 20)
        assert [metric(port, "taken_up") for port in cluster.ports] == [0, 0]
        broker.heal()
        wait_for_readiness(cluster, 200)
        wait_for(
            lambda: sum(metric(port, "taken_up") for port in cluster.ports) == 1, 30, "a leader with its entries", 0.5
        )
        assert check(cluster) == 0
        # When the broker is away again, the leader is no longer ready either.
        broker.blackhole()
        wait_for_readiness(cluster, 503)
        assert check(cluster) == 1
        assert {cluster.says(each, "/livez") for each in cluster} == {200}
        cluster.assert_all_alive()


@pytest.mark.slow
def test_replicas_without_rabbitmq_are_alive_and_not_ready(redis_server: RedisServer, broker: TcpProxy):
    """Its port accepts connections and never answers."""
    broker.blackhole()
    url = broker.url("amqp://guest:guest@127.0.0.1//")
    with Probed(url, replicas=2, lease_urls=redis_server.url, spec=SPEC, settings=SETTINGS) as cluster:
        assert_alive_and_not_ready(cluster, "broker_unreachable", 10)


def received(receiver: socket.socket) -> list[str]:
    """Return the messages that have arrived."""
    found = []
    receiver.setblocking(False)
    while True:
        try:
            found.append(receiver.recv(1000).decode())
        except BlockingIOError:
            return found


@pytest.mark.slow
def test_service_manager_gets_signs_of_life_until_the_main_loop_hangs(redis_server: RedisServer, tmp_path: Path):
    """The messages are those of systemd's `Type=notify` and `WatchdogSec`."""
    hang = tmp_path / "hang"
    spec: dict[str, Any] = {**SPEC, "hanging": {"every": 0.5, "kwargs": {"hangs": True}}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000", "HANG_FILE": str(hang)}
        options: dict[str, Any] = {"app": "tests.support.apps.lazy_app", "env": env, "settings": {"stall_timeout": 3}}
        with BeatCluster(redis_server.url, spec=spec, replicas=1, **options) as cluster:
            messages: list[str] = []

            def has(line: str) -> bool:
                messages.extend(received(receiver))
                return line in "\n".join(messages).splitlines()

            wait_for(lambda: has("READY=1"), 40, "READY=1")
            cluster.wait_for_leader()
            messages.clear()
            time.sleep(5)
            # systemd expects a message in each half of WatchdogSec.
            assert has("WATCHDOG=1")
            assert not has("READY=1")
            hang.write_text(cluster[0].name)
            cluster[0].wait_for_log("duty=main_loop", 30)
            time.sleep(1)
            messages.clear()
            received(receiver)
            time.sleep(3)
            assert not has("WATCHDOG=1")
            hang.unlink()
            wait_for(lambda: has("WATCHDOG=1"), 20, "a sign of life")
            os.kill(cluster[0].pid, signal.SIGTERM)
            wait_for(lambda: has("STOPPING=1"), 20, "STOPPING=1")
