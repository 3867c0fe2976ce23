"""Many standbys on one Redis, and a beat that is forked from a worker.

Fifty beat processes are more than a small machine holds: here the electors are real, with connections and threads of
their own, but several share a process. A process of five is killed at a time, the leader among them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from tests.faults.cluster import BeatCluster, base_environment, ha_scheduler
from tests.faults.history import History, RedisQueueConsumer
from tests.servers import RedisServer, ServerProcess, need, wait_for

CLUSTER = "crowd"
PROCESSES, EACH = 10, 5
KILLS = 3


class Crowd:
    """Processes of electors, and what they said."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self.redis = redis
        self.folder = folder
        self.processes: dict[str, ServerProcess] = {}

    def add(self, name: str, count: int) -> None:
        command = [sys.executable, "-m", "tests.faults.electors", self.redis.url, CLUSTER, count, name]
        log = self.folder / f"{name}.log"
        self.processes[name] = ServerProcess(command, log, env=base_environment())

    def events(self) -> list[dict[str, Any]]:
        lines = [line for path in self.folder.glob("*.log") for line in path.read_text().splitlines()]
        found = [json.loads(line) for line in lines if line.startswith('{"event"')]
        return sorted(found, key=lambda event: float(event["t"]))

    def terms(self) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == "TermStarted"]

    def lease(self) -> dict[str, str]:
        return cast("dict[str, str]", self.redis.admin.hgetall(f"{{ha-beat:{CLUSTER}}}:lease"))

    def subscribers(self) -> int:
        counts = cast("list[tuple[str, int]]", self.redis.admin.pubsub_numsub(f"{{ha-beat:{CLUSTER}}}:wake"))
        return counts[0][1]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with ExitStack() as stack:
        redis = stack.enter_context(need(RedisServer))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hab-crowd-")))
        made = Crowd(redis, folder)
        stack.callback(made.close)
        yield made


def calls(redis: RedisServer) -> dict[str, int]:
    """How often clients, not scripts, have called each command. What a script calls itself is counted by Redis too."""
    stats = cast("dict[str, dict[str, int]]", redis.admin.info("commandstats"))
    from_outside = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_ping", "cmdstat_subscribe", "cmdstat_script|load")
    return {name: int(stats[name]["calls"]) for name in from_outside if name in stats}


@pytest.mark.slow
def test_one_winner_among_fifty_standbys(crowd: Crowd, found: Callable[[str], None]) -> None:
    """After each kill of the leader's process exactly one other leads; each sends some ten commands a second."""
    for number in range(PROCESSES):
        crowd.add(f"p{number}", EACH)
    crowd.add("spare", 1)
    total = PROCESSES * EACH + 1
    wait_for(lambda: crowd.subscribers() >= total, 60, "every elector to listen")
    wait_for(lambda: crowd.lease().get("state") == "held", 20, "a leader")

    before, began = calls(crowd.redis), time.monotonic()
    time.sleep(5)
    after, took = calls(crowd.redis), time.monotonic() - began
    rate = (sum(after.values()) - sum(before.values())) / took / total

    vacancies = []
    for _ in range(KILLS):
        terms = len(crowd.terms())
        holder, epoch = crowd.lease()["holder"], crowd.lease()["epoch"]
        name = holder.partition("-")[0]
        began = time.monotonic()
        crowd.processes.pop(name).kill()
        wait_for(lambda: len(crowd.terms()) > terms, 30, "another leader", 0.005)  # noqa: B023 -- called at once
        vacancies.append(time.monotonic() - began)
        time.sleep(2)
        new = crowd.terms()[terms:]
        assert len(new) == 1, new
        assert crowd.lease()["holder"] == new[0]["name"]
        assert int(crowd.lease()["epoch"]) > int(epoch)
    assert not [event for event in crowd.events() if event["event"] == "TermEnded"]
    assert rate <= 20, f"{rate:.1f} commands a second for each"
    assert max(vacancies) < 5  # half of the lease
    found(
        f"{total} electors: {rate:.1f} commands/s each; {KILLS} kills, each with one winner after "
        f"{', '.join(f'{seconds * 1000:.0f}' for seconds in vacancies)} ms"
    )


@pytest.mark.slow
def test_a_crowd_wakes_for_a_released_lease_and_one_takes_it(crowd: Crowd) -> None:
    """Everybody hears the wake message at the same moment: one wins, and nobody believes to have won beside it."""
    for number in range(4):
        crowd.add(f"p{number}", EACH)
    wait_for(lambda: crowd.subscribers() >= 4 * EACH, 60, "every elector to listen")
    wait_for(lambda: crowd.lease().get("state") == "held", 20, "a leader")
    key = f"{{ha-beat:{CLUSTER}}}:lease"
    for _ in range(5):
        terms = len(crowd.terms())
        with crowd.redis.admin.pipeline() as pipeline:
            # As a release does; the present holder finds out by its next renewal.
            pipeline.hset(key, mapping={"state": "released", "presence": ""})
            pipeline.publish(f"{{ha-beat:{CLUSTER}}}:wake", "released")
            pipeline.execute()
        wait_for(lambda: len(crowd.terms()) > terms, 20, "a winner")  # noqa: B023 -- called at once
        time.sleep(0.3)
        assert len(crowd.terms()) == terms + 1
    epochs = [term["epoch"] for term in crowd.terms()]
    assert epochs == sorted(set(epochs))


@pytest.mark.slow
def test_a_forked_beat_has_an_identity_of_its_own(found: Callable[[str], None]) -> None:
    """`worker -B`: the lease names the child, which dies and is replaced like any other replica."""
    with ExitStack() as stack:
        redis = stack.enter_context(need(lambda: RedisServer(appendonly=True)))
        cluster = stack.enter_context(BeatCluster(redis.url, replicas=1, spec={"fast": {"every": 0.2}}))
        beat = cluster[0]
        beat.wait_for_log_of_start()
        cluster.wait_for_leader()
        # The worker consumes another queue, so that what beat enqueues can be seen.
        command = [sys.executable, "-m", "celery", "-A", "tests.apps.tick_app", "worker", "-B", "-c", "1"]
        command += ["-Q", "other", "-l", "INFO", "--scheduler", ha_scheduler(), "-s", str(cluster.directory / "s")]
        worker = ServerProcess(command, cluster.directory / "worker.log", cwd=cluster.directory, env=beat.env)
        stack.callback(worker.kill)
        wait_for(lambda: "Standing by" in worker.log_text(), 40, "the forked beat to stand by")
        history = History()
        stack.enter_context(RedisQueueConsumer(history, redis.url))
        history.wait_for_messages(5)
        beat.kill()
        wait_for(lambda: cluster.lease().get("pid") not in (None, str(beat.pid)), 20, "the forked beat to lead")
        child = int(cluster.lease()["pid"])
        assert child != worker.pid
        assert os.getpgid(child) == worker.pid
        history.wait_for_messages(len(history.messages()) + 5)
        beat.start()
        beat.wait_for_log("Standing by", 30)
        os.kill(child, 9)
        wait_for(lambda: cluster.leader() is beat, 20, "the other replica to lead again")
        history.wait_for_messages(len(history.messages()) + 5)
        due = [(m["entry"], m["scheduled_at"]) for m in history.messages()]
        assert len(set(due)) == len(due)
        found(f"worker {worker.pid}, beat {child}")
