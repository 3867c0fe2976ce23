"""Many standbys on one Redis, and a beat forked from a worker."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ha_beat.store.keys import Keys
from tests.faults.checker import Interval, check
from tests.faults.cluster import BeatCluster, base_environment, ha_scheduler
from tests.faults.history import History, RedisQueueConsumer
from tests.support.servers import RedisServer, ServerProcess, need, wait_for

KEYS = Keys("crowd")
BEATS = 51
KILLS = 3
RELEASES = 5


class Beats:
    """Real beats, forked from one process that has done the imports."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        self.redis = redis
        self.folder = folder
        spec = json.dumps({"fast": {"every": 0.2}})
        env = base_environment({"BROKER_URL": redis.url, "BEAT_SPEC": spec, "HA_BEAT_CLUSTER": "crowd"})
        command = [sys.executable, "-m", "tests.faults.forked_beats", folder, BEATS]
        self.process = ServerProcess(command, folder / "parent.out", cwd=folder, env=env)

    def alive(self) -> int:
        lines = (self.folder / "parent.out").read_text().splitlines()
        pids = [line.split()[1] for line in lines if line.startswith("beat-")]
        return sum(Path(f"/proc/{pid}").exists() for pid in pids)

    def lease(self) -> dict[str, str]:
        return self.redis.admin.hgetall(KEYS.lease)

    def winners(self) -> list[str]:
        """Return the holders of the lease in order, as the script recorded them."""
        records = [json.loads(fields["d"]) for _, fields in self.redis.admin.xrange(KEYS.journal)]
        return [record["by"] for record in records if record.get("event") == "acquired"]

    def logs(self) -> list[str]:
        return [log.read_text() for log in self.folder.glob("beat-*.log")]

    def logs_with(self, text: str) -> int:
        return sum(text in log for log in self.logs())

    def terms_started(self) -> int:
        return sum(log.count("action=term_started") for log in self.logs())

    def change_leader(self, cause: Callable[[dict[str, str]], None], history: History) -> float:
        """Assert that one other beat leads after the cause, which is called with the lease.

        Return the seconds until another beat has the lease.
        """
        won, started, before, since = len(self.winners()), self.terms_started(), self.lease(), time.monotonic()
        cause(before)
        wait_for(lambda: len(self.winners()) > won, 30, "another leader", 0.005)
        vacancy = time.monotonic() - since
        history.wait_for_more(5)
        time.sleep(1)
        (winner,) = self.winners()[won:]
        after = self.lease()
        assert after["holder"] == winner
        assert int(after["epoch"]) > int(before["epoch"])
        seen = f"the leader is {winner} (epoch {after['epoch']})"
        wait_for(lambda: self.logs_with(seen) == self.alive() - 1, 10, "every standby to know the leader")
        assert self.terms_started() == started + 1
        return vacancy

    def kill(self, lease: dict[str, str]) -> None:
        os.kill(int(lease["pid"]), signal.SIGKILL)

    def release(self, _: dict[str, str]) -> None:
        """Release the lease as its holder does. The holder notices at its next renewal."""
        with self.redis.admin.pipeline() as pipeline:
            pipeline.hset(KEYS.lease, mapping={"state": "released", "presence": ""})
            pipeline.publish(KEYS.wake, "released")
            pipeline.execute()


@pytest.fixture
def beats(tmp_path: Path) -> Iterator[Beats]:
    with need(lambda: RedisServer(appendonly=True)) as redis:
        made = Beats(redis, tmp_path)
        yield made
        made.process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_winner_among_fifty_standbys(beats: Beats, found):
    """The leader is killed, or its release wakes all standbys. No occurrence is duplicated, and no beat exits."""
    began = time.monotonic()
    wait_for(lambda: beats.logs_with("action=leader_seen") == BEATS - 1, 150, "every beat to be up", 0.5)
    up_after = time.monotonic() - began
    wait_for(lambda: beats.lease().get("presence"), 20, "the leader's presence")
    history = History()
    with RedisQueueConsumer(history, beats.redis.url):
        rate = beats.redis.commands_per_second(5.0) / BEATS
        vacancies = [beats.change_leader(beats.kill, history) for _ in range(KILLS)]
        for _ in range(RELEASES):
            beats.change_leader(beats.release, history)
    report = check(history.events(), [Interval("fast", 0.2)], [])
    assert report.duplicates == 0, str(report)
    assert beats.alive() == BEATS - KILLS
    assert rate <= 20, f"{rate:.1f} commands a second for each"
    assert max(vacancies) < 5  # half of the lease
    figures = ", ".join(f"{seconds * 1000:.0f}" for seconds in vacancies)
    found(f"{BEATS} beats, up after {up_after:.0f} s: {rate:.1f} commands/s each; a winner {figures} ms after a kill")


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
