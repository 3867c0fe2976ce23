"""Entries with `overlap = "skip"`, whose worker is away or dies."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import STOCK_SCHEDULER, BeatCluster, base_environment
from tests.support.servers import RedisServer, ServerProcess, wait_for

APP = "tests.support.apps.overlap_app"
TIMEOUT = 6


def spec(**options: Any) -> dict[str, Any]:
    ours = {"overlap": "skip", "overlap_timeout": TIMEOUT, **options}
    return {
        "stock": {"every": 1},
        "ours": {"every": 1, "options": {"ha_beat": ours}},
        "slow": {"every": 1, "task": "nap", "args": [300], "options": {"queue": "slow", "ha_beat": ours}},
    }


@contextmanager
def worker(cluster: BeatCluster, broker: str, redis: RedisServer, folder: Path, queue: str) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "celery", "-A", APP, "worker", "-l", "INFO", "-c", "1"]
    command += ["-Q", queue, "--without-gossip", "--without-mingle", "--without-heartbeat"]
    env = {"BROKER_URL": broker, "HA_BEAT_CLUSTER": cluster.name, "BEAT_SPEC": json.dumps(cluster.spec)}
    env |= {} if broker == redis.url else {"HA_BEAT_REDIS_URL": redis.url}
    process = ServerProcess(command, folder / f"{queue}.log", cwd=folder, env=base_environment(env))
    try:
        yield process
    finally:
        process.kill()


def verdicts(cluster: BeatCluster, entry: str, verdict: str) -> int:
    return sum(r.get("entry") == entry and r.get("verdict") == verdict for r in cluster.journal())


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", ["atomic", "claim"])
def test_entry_piles_up_no_messages_and_goes_on_after_its_worker_died(
    path: str, redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
):
    """Without a worker, one message of the entry waits; those of an entry without the option pile up."""
    broker, leases = redis_server.url, None
    if path == "claim":
        broker, leases = request.getfixturevalue("rabbitmq").url, redis_server.url
    schedule = {**spec(), "ours": spec(overlap_timeout=3600)["ours"]}
    options: dict[str, Any] = {"app": APP, "lease_urls": leases, "admin_url": redis_server.url}
    cluster = BeatCluster(broker, spec=schedule, replicas=2, cluster=f"pile-{path}", **options)
    with cluster:
        wait_for(lambda: verdicts(cluster, "stock", "enqueued") >= 8, 60, "a pile", 0.2)
        assert verdicts(cluster, "ours", "enqueued") == 1
        assert verdicts(cluster, "ours", "skipped") >= 5
        assert "no_reports" in cluster.logs()
        with worker(cluster, broker, redis_server, tmp_path, "celery"):
            wait_for(lambda: verdicts(cluster, "ours", "enqueued") >= 4, 60, "messages of an idle entry", 0.2)
        before = verdicts(cluster, "slow", "enqueued")
        with worker(cluster, broker, redis_server, tmp_path, "slow") as process:
            wait_for(lambda: "napping" in (tmp_path / "slow.log").read_text(), 60, "a task that runs", 0.2)
            process.kill()
        died = time.monotonic()
        before = max(before, verdicts(cluster, "slow", "enqueued"))
        wait_for(lambda: verdicts(cluster, "slow", "enqueued") > before, TIMEOUT + 20, "the entry to go on", 0.2)
        assert time.monotonic() - died < TIMEOUT + 15


@pytest.mark.slow
def test_entry_without_a_worker_leaves_one_message_and_stock_beat_120(redis_server: RedisServer) -> None:
    """The entry is due every 0.1 s."""
    entry = {"every": 0.1, "options": {"ha_beat": {"overlap": "skip"}}}
    ours = BeatCluster(redis_server.url, spec={"ours": entry}, replicas=2)
    queue = {"task_default_queue": "stock"}
    stock = BeatCluster(
        redis_server.url, spec={"stock": {"every": 0.1}}, replicas=1, scheduler=STOCK_SCHEDULER, config=queue
    )
    with ours, stock:
        wait_for(lambda: verdicts(ours, "ours", "enqueued"), 60, "a message")
        wait_for(lambda: redis_server.admin.llen("stock") >= 120, 120, "the pile", 0.2)
        wait_for(lambda: verdicts(ours, "ours", "skipped") >= 100, 60, "skipped occurrences", 0.2)
        assert verdicts(ours, "ours", "enqueued") == redis_server.admin.llen("celery") == 1
