"""Clusters that run `tests.support.apps.claim_app`: a failpoint, open claims, and a worker for their tasks."""

import json
import sys
import uuid
from pathlib import Path
from typing import Any, Self

from tests.faults.cluster import BeatCluster, base_environment
from tests.support.servers import RabbitMQ, RedisServer, ServerProcess, wait_for

CLAIM_APP = "tests.support.apps.claim_app"

#: With a lease of 3 s, commands to Redis and waits for the broker are bounded by 0.75 s, and a leader hands over
#: after 5 s without a broker.
QUICK = {"lease_ttl": 3}


def new_queue() -> str:
    return f"queue-{uuid.uuid4().hex[:8]}"


def open_claims(cluster: BeatCluster) -> list[str]:
    claims: Any = cluster.admin.hgetall(cluster.key("claims"))
    return [claim for claim in claims.values() if claim.startswith("open ")]


def wait_until_resolved(cluster: BeatCluster) -> None:
    wait_for(lambda: not open_claims(cluster), 15, "no open claim")


class ClaimCluster(BeatCluster):
    """Two replicas on RabbitMQ, of which the leader stops at the place that is written to ``failpoint``."""

    def __init__(self, broker: RabbitMQ, redis: RedisServer, failpoint: Path, spec: Any, queue: str) -> None:
        super().__init__(
            broker.url,
            lease_urls=redis.url,
            spec=spec,
            replicas=2,
            app=CLAIM_APP,
            settings=QUICK,
            config={"task_default_queue": queue},
            env={"FAILPOINT_FILE": str(failpoint), "RECORD_URL": redis.url},
        )


class Worker:
    """Worker that notes in Redis which tasks it receives, runs and drops."""

    def __init__(self, broker: str, redis: RedisServer, queue: str, folder: Path) -> None:
        self.redis = redis
        config = {"task_default_queue": queue, "worker_prefetch_multiplier": 1}
        urls = {"BROKER_URL": broker, "RECORD_URL": redis.url, "HA_BEAT_REDIS_URL": redis.url}
        self.env = base_environment({**urls, "APP_CONFIG": json.dumps(config)})
        self.folder = folder
        self.process = self.start()

    def start(self) -> ServerProcess:
        command = [sys.executable, "-m", "celery", "-A", CLAIM_APP, "worker", "-l", "INFO", "--pool", "solo"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return ServerProcess(command, self.folder / "worker.log", cwd=self.folder, env=self.env)

    def noted(self, kind: str) -> list[dict[str, Any]]:
        lines: Any = self.redis.admin.lrange(kind, 0, -1)
        return [json.loads(line) for line in lines]

    def count(self, kind: str, task_id: str) -> int:
        return sum(note["id"] == task_id for note in self.noted(kind))

    def wait_for(self, kind: str, task_id: str, count: int = 1, timeout: float = 30) -> None:
        """Wait until a task has this many notes of a kind."""
        what = f"{count} of {task_id} {kind}\n{self.process.log_tail()}"
        wait_for(lambda: self.count(kind, task_id) >= count, timeout, what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
