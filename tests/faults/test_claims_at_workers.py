"""Outcome of an occurrence on RabbitMQ, at the workers and in the journal, by the place at which its leader is killed.

place         uncertain=skip             uncertain=republish
before claim  sent by the next leader    sent by the next leader
claimed       not sent; uncertain        sent by the next leader
published     sent; uncertain            sent twice; the guard drops one
confirmed     sent                       sent
"""

import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ha_beat.schedule.occurrence import Occurrence
from tests.faults.claims import ClaimCluster, Worker, new_queue, open_claims, wait_until_resolved
from tests.faults.cluster import BeatCluster
from tests.support.servers import RabbitMQ, RedisServer, wait_for

pytestmark = pytest.mark.slow

#: place -> policy -> messages at the workers, the verdict in the journal.
DECLARED = {
    "before claim": {"skip": (1, "enqueued"), "republish": (1, "enqueued")},
    "claimed": {"skip": (0, "uncertain"), "republish": (1, "enqueued")},
    "published": {"skip": (1, "uncertain"), "republish": (2, "enqueued")},
    "confirmed": {"skip": (1, "enqueued"), "republish": (1, "enqueued")},
}

EVERY = 3


@pytest.mark.timeout(240)
def test_leader_killed_at_each_step_has_the_declared_outcome(
    rabbitmq: RabbitMQ, redis_server: RedisServer, tmp_path: Path, figure: Callable[[str], None]
):
    """With each policy, with and without the guard."""
    queue, failpoint = new_queue(), tmp_path / "failpoint"
    first = math.ceil(time.time())
    spec = {
        f"{task} {policy}": {
            "every": EVERY,
            "first": first,
            "task": task,
            # A late takeover must not coalesce this occurrence with the next.
            "options": {"ha_beat": {"uncertain": policy, "misfire": "all"}},
        }
        for task in ("plain", "guarded")
        for policy in ("skip", "republish")
    }
    with (
        Worker(rabbitmq.url, redis_server, queue, tmp_path) as worker,
        ClaimCluster(rabbitmq, redis_server, failpoint, spec, queue) as cluster,
    ):
        cluster.wait_until_up()
        # By then the standby knows the leader's presence, and need not wait for the lease to expire.
        wait_for(lambda: len({note["id"] for note in worker.noted("ran")}) >= len(spec), 30, "the first occurrences")
        lines = [f"{'killed':14}{'uncertain':11}{'guard':7}{'messages':>9}{'runs':>6}{'dropped':>9}  verdict"]
        wrong = []
        for place, cells in DECLARED.items():
            at = killed_at(place, cluster, failpoint, first)
            for name in spec:
                task, policy = name.split()
                messages, verdict = cells[policy]
                task_id = Occurrence(name, at).task_id("tick")
                found_verdict = wait_for(lambda name=name, at=at: verdict_of(cluster, name, at), 20, f"{name}: {place}")
                # A second message must have arrived by now, and an unwanted one has had enough time.
                worker.wait_for("received", task_id, messages, timeout=10)
                time.sleep(0.5)
                found = [worker.count(kind, task_id) for kind in ("received", "ran", "dropped")]
                runs = min(messages, 1) if task == "guarded" else messages
                if (found, found_verdict) != ([messages, runs, messages - runs], verdict):
                    wrong.append(f"{place}, {name}: {found} {found_verdict}")
                guarded = "on" if task == "guarded" else "off"
                counts = f"{found[0]:>9}{found[1]:>6}{found[2]:>9}"
                lines.append(f"{place:14}{policy:11}{guarded:7}{counts}  {found_verdict}")
        figure("the leader killed on RabbitMQ\n" + "\n".join(lines))
        assert not wrong, "\n".join([*wrong, cluster.logs(), worker.process.log_tail()])
        assert redis_server.admin.get(cluster.key("dropped")) == "1"
        assert open_claims(cluster) == []


def killed_at(place: str, cluster: BeatCluster, failpoint: Path, first: int) -> datetime:
    """Let the leader kill itself there, start it again, and return the instant that it was about to enqueue."""
    leader = cluster.wait_for_leader()
    done = failpoint.with_suffix(".done")
    failpoint.write_text(place)
    wait_for(done.exists, 20, f"a death at {place!r}")
    wait_for(lambda: not leader.alive, 20, "its end")
    when = float(done.read_text())
    done.unlink()
    leader.start()
    return datetime.fromtimestamp(first + EVERY * ((when - first) // EVERY), UTC)


def verdict_of(cluster: BeatCluster, entry: str, at: datetime) -> str:
    """Return the occurrence's last verdict in the journal; empty without one or while its claim is open."""
    instant = at.isoformat(timespec="microseconds")
    found = [
        record["verdict"]
        for record in cluster.journal()
        if record.get("entry") == entry and record.get("at") == instant and "verdict" in record
    ]
    return found[-1] if found else ""


@pytest.mark.timeout(120)
def test_next_leader_of_another_release_republishes_each_open_claim(
    rabbitmq: RabbitMQ, redis_server: RedisServer, tmp_path: Path
):
    """Its entries have another interval, so that the takeover writes a row for each of them."""
    failpoint, first = tmp_path / "failpoint", math.ceil(time.time())
    fast = {"every": 0.5, "first": first}
    many = {"every": 4, "first": first, "n": 20, "options": {"ha_beat": {"uncertain": "republish"}}}
    with ClaimCluster(rabbitmq, redis_server, failpoint, {"fast": fast, "many": many}, new_queue()) as cluster:
        leader = cluster.wait_for_leader()
        (other,) = [replica for replica in cluster if replica is not leader]
        other.kill()
        other.env["BEAT_SPEC"] = json.dumps({"fast": fast, "many": {**many, "every": 1}})
        other.start()
        wait_for(lambda: other.log_text().count("action=leader_seen") >= 1, 20, "the standby")
        burst = first + 4 * math.ceil((time.time() + 1 - first) / 4)
        wait_for(lambda: time.time() > burst - 0.3, 10, "the burst", 0.01)
        failpoint.write_text("claimed")
        wait_for(lambda: not leader.alive, 20, "its death")
        records = [json.loads(claim.removeprefix("open "))["records"][-1] for claim in open_claims(cluster)]
        claimed = {(record["entry"], record["at"]) for record in map(json.loads, records)}
        claimed = {(entry, at) for entry, at in claimed if entry.startswith("many")}
        assert claimed

        def enqueued() -> set[tuple[str, str]]:
            found = [record for record in cluster.journal() if record.get("verdict") == "enqueued"]
            return {(record["entry"], record["at"]) for record in found}

        wait_for(lambda: claimed <= enqueued(), 20, "each claimed occurrence to be sent")
        wait_until_resolved(cluster)


# --- The guard in a real worker


def send(broker: str, queue: str, task: str, task_id: str, mark: str) -> None:
    """Send a message with this publish id."""
    from tests.support.apps.claim_app import app

    header = {"cluster": "tick", "entry": "e", "scheduled_at": "2030-01-01T12:00:00+00:00", "publish": mark}
    with app.connection_for_write(broker) as connection:
        app.send_task(
            task, task_id=task_id, headers={"ha_beat": header}, connection=connection, queue=queue, retry=False
        )


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_worker_runs_a_retry_and_drops_a_second_publish(
    broker: str, redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
):
    """A second message with the same publish id runs; one with another id is acknowledged and dropped."""
    url = redis_server.url_for(2) if broker == "redis" else request.getfixturevalue("rabbitmq").url
    queue = new_queue()
    with Worker(url, redis_server, queue, tmp_path) as worker:
        send(url, queue, "again", "1", "first")
        worker.wait_for("ran", "1", 2)
        for mark in ("first", "first", "second"):
            send(url, queue, "guarded", "2", mark)
        worker.wait_for("dropped", "2", timeout=10)
        send(url, queue, "guarded", "3", "first")
        worker.wait_for("ran", "3", timeout=10)
        assert [worker.count("ran", task_id) for task_id in "123"] == [2, 2, 1]
        assert worker.count("dropped", "2") == 1
        dropped = "action=message_dropped entry=e scheduled_at=2030-01-01T12:00:00+00:00 task=guarded task_id=2"
        assert dropped in worker.process.log_text()
        # Acknowledged: no other worker receives it.
        worker.process.stop()
        worker.process = worker.start()
        send(url, queue, "guarded", "4", "first")
        worker.wait_for("ran", "4")
        assert worker.count("received", "2") == 3


def test_redelivery_after_the_death_of_a_worker_runs(rabbitmq: RabbitMQ, redis_server: RedisServer, tmp_path: Path):
    """The worker is killed in the middle of the task. The next one receives the message with the same publish id."""
    queue = new_queue()
    with Worker(rabbitmq.url, redis_server, queue, tmp_path) as worker:
        send(rabbitmq.url, queue, "linger", "1", "only")
        worker.wait_for("ran", "1")
        worker.process.kill()
        worker.process = worker.start()
        worker.wait_for("ran", "1", 2)
        assert worker.noted("dropped") == []
