"""Many standbys on one Redis, and a beat forked from a worker."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from ha_beat.store.keys import Keys
from tests.faults.checker import Interval, check
from tests.faults.cluster import BeatCluster, base_environment, ha_scheduler
from tests.faults.history import History, RedisQueueConsumer
from tests.support.servers import RedisServer, ServerProcess, need, wait_for

CLUSTER = "crowd"
EACH = 5
KILLS = 3

KEYS = Keys(CLUSTER)
BEATS = 51


def lease(redis: RedisServer) -> dict[str, str]:
    return redis.admin.hgetall(KEYS.lease)


class Crowd:
    """Processes of electors and their output."""

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

    def subscribers(self) -> int:
        return self.redis.admin.pubsub_numsub(KEYS.wake)[0][1]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    with need(RedisServer) as redis, closing(Crowd(redis, tmp_path)) as made:
        yield made


class Beats:
    """Real beats, forked from one process that has done the imports."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self.redis = redis
        self.folder = folder
        spec = json.dumps({"fast": {"every": 0.2}})
        env = base_environment({"BROKER_URL": redis.url, "BEAT_SPEC": spec, "HA_BEAT_CLUSTER": CLUSTER})
        command = [sys.executable, "-m", "tests.faults.forked_beats", folder, BEATS]
        self.process = ServerProcess(command, folder / "parent.out", cwd=folder, env=env)

    def pids(self) -> dict[str, int]:
        """Return the pid of each beat by its replica's name."""
        lines = (self.folder / "parent.out").read_text().splitlines()
        return {name: int(pid) for name, pid in (line.split() for line in lines if line.startswith("beat-"))}

    def terms(self) -> list[str]:
        """Return the holders of the lease in order, as the script recorded them."""
        records = [json.loads(fields["d"]) for _, fields in self.redis.admin.xrange(KEYS.journal)]
        return [record["by"] for record in records if record.get("event") == "acquired"]

    def count(self, line: str) -> int:
        """Return the number of logs with such a line."""
        return sum(line in log.read_text() for log in self.folder.glob("beat-*.log"))


@pytest.fixture
def beats(tmp_path: Path) -> Iterator[Beats]:
    with need(lambda: RedisServer(appendonly=True)) as redis:
        made = Beats(redis, tmp_path)
        yield made
        made.process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_winner_among_fifty_standbys(beats: Beats, found):
    """After each kill of the leader exactly one other leads; no occurrence is duplicated, and no beat exits."""
    began = time.monotonic()
    wait_for(lambda: beats.count("action=leader_seen") == BEATS - 1, 150, "every beat to be up", 0.5)
    started = time.monotonic() - began
    wait_for(lambda: lease(beats.redis).get("presence"), 20, "the leader's presence")
    history = History()
    with RedisQueueConsumer(history, beats.redis.url):
        rate = beats.redis.commands_per_second(5.0) / BEATS
        vacancies = []
        for number in range(1, KILLS + 1):
            terms, before = beats.terms(), lease(beats.redis)
            killed = time.monotonic()
            os.kill(int(before["pid"]), signal.SIGKILL)
            wait_for(lambda: len(beats.terms()) > len(terms), 30, "another leader", 0.005)  # noqa: B023 -- called immediately
            vacancies.append(time.monotonic() - killed)
            history.wait_for_more(5)
            time.sleep(1)
            (winner,) = beats.terms()[len(terms) :]
            after = lease(beats.redis)
            assert after["holder"] == winner != before["holder"]
            assert int(after["epoch"]) > int(before["epoch"])
            wait_for(lambda: beats.count(f"the leader is {winner} (epoch {after['epoch']})") == BEATS - 1 - number, 10)  # noqa: B023 -- called immediately
    report = check(history.events(), [Interval("fast", 0.2)], [])
    assert report.duplicates == 0, str(report)
    alive = [name for name, pid in beats.pids().items() if Path(f"/proc/{pid}").exists()]
    assert len(alive) == BEATS - KILLS
    assert rate <= 20, f"{rate:.1f} commands a second for each"
    assert max(vacancies) < 5  # half of the lease
    found(
        f"{BEATS} beats, up after {started:.0f} s: {rate:.1f} commands/s each; {KILLS} kills, each with one winner "
        f"after {', '.join(f'{seconds * 1000:.0f}' for seconds in vacancies)} ms; {report.duplicates} duplicates"
    )


@pytest.mark.slow
def test_released_lease_wakes_all_standbys_and_one_takes_it(crowd: Crowd):
    """All standbys receive the wake message at the same time: one wins, and no other trusts a term."""
    for number in range(4):
        crowd.add(f"p{number}", EACH)
    wait_for(lambda: crowd.subscribers() >= 4 * EACH, 60, "every elector to listen")
    wait_for(lambda: lease(crowd.redis).get("state") == "held", 20, "a leader")
    for _ in range(5):
        terms = len(crowd.terms())
        with crowd.redis.admin.pipeline() as pipeline:
            # As a release does; the holder notices at its next renewal.
            pipeline.hset(KEYS.lease, mapping={"state": "released", "presence": ""})
            pipeline.publish(KEYS.wake, "released")
            pipeline.execute()
        wait_for(lambda: len(crowd.terms()) > terms, 20, "a winner")  # noqa: B023 -- called immediately
        time.sleep(0.3)
        assert len(crowd.terms()) == terms + 1
    epochs = [term["epoch"] for term in crowd.terms()]
    assert epochs == sorted(set(epochs))


@pytest.mark.slow
def test_forked_beat_has_its_own_identity(found):
    """`worker -B`: the lease names the child, which dies and is replaced like any other replica."""
    with (
        need(lambda: RedisServer(appendonly=True)) as redis,
        BeatCluster(redis.url, replicas=1, spec={"fast": {"every": 0.2}}) as cluster,
        ExitStack() as stack,
    ):
        beat = cluster[0]
        beat.wait_for_log_of_start()
        cluster.wait_for_leader()
        # The worker consumes another queue, so that beat's messages stay visible.
        command = [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "worker", "-B", "-c", "1"]
        command += ["-Q", "other", "-l", "INFO", "--scheduler", ha_scheduler(), "-s", str(cluster.directory / "s")]
        worker = ServerProcess(command, cluster.directory / "worker.log", cwd=cluster.directory, env=beat.env)
        stack.callback(worker.kill)
        wait_for(lambda: "action=leader_seen" in worker.log_text(), 40, "the forked beat to stand by")
        history = History()
        stack.enter_context(RedisQueueConsumer(history, redis.url))
        history.wait_for_messages(5)
        beat.kill()
        wait_for(lambda: cluster.lease().get("pid") not in (None, str(beat.pid)), 20, "the forked beat to lead")
        child = int(cluster.lease()["pid"])
        assert child != worker.pid
        assert os.getpgid(child) == worker.pid
        history.wait_for_more(5)
        beat.start()
        beat.wait_for_log("action=leader_seen", 30)
        os.kill(child, 9)
        wait_for(lambda: cluster.leader() is beat, 20, "the other replica to lead again")
        history.wait_for_more(5)
        due = [(m["entry"], m["scheduled_at"]) for m in history.messages()]
        assert len(set(due)) == len(due)
        found(f"worker {worker.pid}, beat {child}")
