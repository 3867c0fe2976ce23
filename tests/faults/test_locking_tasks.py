"""Tasks that take a lock when they are applied, while the broker goes away: plain beat beside ha_beat."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import RabbitMQ, RedisServer, Server, ServerProcess, need, wait_for

pytest.importorskip("celery_singleton")
pytest.importorskip("celery_once")

APP = """
import os, time

import redis
from celery import Celery
from celery_once import QueueOnce
from celery_singleton import Singleton

name, keeper_url = os.environ["APP"], os.environ["KEEPER"]
keeper = redis.Redis.from_url(keeper_url)
app = Celery(name, broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue=name,
    task_ignore_result=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    singleton_backend_url=keeper_url,
    ONCE={"backend": "celery_once.backends.Redis", "settings": {"url": keeper_url, "default_timeout": 3600}},
    ha_beat_redis_url=os.environ.get("LEASE"),
    ha_beat_lease_ttl=3,
    beat_schedule={kind: {"task": f"{name}.{kind}", "schedule": 0.5} for kind in ("singleton", "once")},
)


@app.task(base=Singleton, name=f"{name}.singleton")
def singleton():
    keeper.rpush(f"{name}:singleton", time.time())


@app.task(base=QueueOnce, once={"graceful": True}, name=f"{name}.once")
def once():
    keeper.rpush(f"{name}:once", time.time())
"""

KINDS = ("singleton", "once")


class Run:
    """Plain beat and two replicas of ha_beat with a worker each, on one broker."""

    def __init__(self, folder: Path, broker: Server, keeper: RedisServer, lease: str | None) -> None:
        self.folder, self.broker, self.keeper, self.lease = folder, broker, keeper, lease
        self.stack = ExitStack()
        (folder / "locking.py").write_text(APP)
        for name in ("stock", "ours"):
            self.start(
                name,
                "worker",
                "-P",
                "solo",
                "--without-mingle",
                "--without-gossip",
                "--without-heartbeat",
                "-n",
                f"{name}@h",
            )
        self.start("stock", "beat", "-s", str(folder / "schedule"), "--pidfile=")
        for _ in range(2):
            self.start("ours", "beat", "-S", "ha_beat", "--pidfile=")

    def start(self, name: str, *arguments: str) -> None:
        broker: Any = self.broker
        env = {**os.environ, "APP": name, "KEEPER": self.keeper.url, "BROKER": broker.url}
        if self.lease and name == "ours":
            env["LEASE"] = self.lease
        command = [sys.executable, "-m", "celery", "-A", "locking", *arguments, "-l", "INFO"]
        process = ServerProcess(command, self.folder / f"{name}-{arguments[0]}.log", cwd=self.folder, env=env)
        self.stack.callback(process.kill)

    def runs(self, name: str, kind: str, since: float = 0.0) -> int:
        """Return the number of runs since a time."""
        raw: Any = self.keeper.admin.lrange(f"{name}:{kind}", 0, -1)
        return sum(float(at) >= since for at in raw)

    def wait_for_runs(self, names: tuple[str, ...], since: float, timeout: float = 60.0) -> None:
        wait_for(lambda: all(self.runs(n, k, since) > 3 for n in names for k in KINDS), timeout, "runs")


@pytest.fixture
def keeper() -> Iterator[RedisServer]:
    with need(RedisServer) as server:
        yield server


def redis_broker() -> RedisServer:
    return RedisServer(appendonly=True)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_tasks_with_a_lock_run_on_after_an_outage_of_the_broker(tmp_path: Path, keeper: RedisServer, kind: str):
    """The lock of a message that could not be sent is not found by the next one."""
    make: Callable[[], Any] = redis_broker if kind == "redis" else RabbitMQ
    with need(make) as broker:
        run = Run(tmp_path, broker, keeper, keeper.url if kind == "rabbitmq" else None)
        with run.stack:
            run.wait_for_runs(("stock", "ours"), 0.0)
            broker.stop()
            time.sleep(15)
            broker.start()
            back = time.time()
            run.wait_for_runs(("ours",), back + 2.0)
            time.sleep(10)
            counts = {(n, k): run.runs(n, k, back) for n in ("stock", "ours") for k in KINDS}
        enqueued = re.findall(r"Enqueued \w+ \(\S+\[(\S+)\]\)", (tmp_path / "ours-beat.log").read_text())
        assert len(enqueued) == len(set(enqueued)) > 0
        for each in KINDS:
            assert counts["ours", each] >= counts["stock", each] - 4, counts
