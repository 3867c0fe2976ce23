"""Dispatch by real processes to a broker that is not the lease's Redis: RabbitMQ or another Redis.

Outcome of an occurrence by the place at which its leader is killed:

    place         uncertain=skip             uncertain=republish
    before claim  sent by the next leader    sent by the next leader
    claimed       not sent; uncertain        sent by the next leader
    published     sent; uncertain            sent twice; the guard drops one
    confirmed     sent                       sent
"""

from __future__ import annotations

import json
import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ha_beat.dispatch.claims.send_rate import CHUNK
from ha_beat.reasons import UncertainReason
from ha_beat.schedule.occurrence import Occurrence
from tests.faults.checker import Interval, Report, duplicates_by_occurrence
from tests.faults.cluster import BeatCluster, Replica, base_environment
from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RabbitMQ, RedisServer, Server, ServerProcess, need, wait_for

pytestmark = pytest.mark.slow

HALF_SECOND = {"fast": {"every": 0.5}}

#: With a lease of 3 s, commands to Redis and waits for the broker are bounded by 0.75 s, and a leader hands over
#: after 5 s without a broker.
QUICK = {"lease_ttl": 3}

PUBLISH = containing(b"ha_beat", b"scheduled_at")


@contextmanager
def scenario_on(broker: Server, **options: Any) -> Iterator[ClusterScenario]:
    """Start replicas with their own queue, which a consumer empties."""
    queue = f"queue-{uuid.uuid4().hex[:8]}"
    given: dict[str, Any] = {"spec": HALF_SECOND, "replicas": 2, "settings": QUICK, **options}
    given["config"] = {"task_default_queue": queue, **given.get("config", {})}
    with ClusterScenario(broker=broker, queues=[queue], **given) as made:  # type: ignore[arg-type]
        yield made


def open_claims(cluster: BeatCluster) -> list[str]:
    assert cluster.admin is not None
    claims: Any = cluster.admin.hgetall(cluster.key("claims"))
    return [claim for claim in claims.values() if claim.startswith("open ")]


def settled(scenario: ClusterScenario) -> None:
    """Wait until no claim is open and messages arrive."""
    count = len(scenario.history.messages())
    scenario.history.wait_for_messages(count + 3, timeout=30)
    wait_for(lambda: not open_claims(scenario.cluster), 15, "no open claim")


def checked(scenario: ClusterScenario, entry: str = "fast", every: float = 0.5) -> Report:
    """Assert that every replica runs, nothing is duplicated, and missing occurrences have a verdict."""
    scenario.cluster.assert_all_alive()
    report = scenario.report([Interval(entry, every)])
    assert report.ok, f"{report}\n{scenario.cluster.logs()}"
    return report


# --- The leader killed at each step


class Worker:
    """Worker that notes in Redis which tasks it receives, runs and drops."""

    def __init__(self, broker: str, redis: RedisServer, queue: str, folder: Path) -> None:
        self.redis = redis
        config = {"task_default_queue": queue, "worker_prefetch_multiplier": 1}
        self.env = base_environment(
            {
                "BROKER_URL": broker,
                "APP_CONFIG": json.dumps(config),
                "RECORD_URL": redis.url,
                "HA_BEAT_REDIS_URL": redis.url,
            }
        )
        self.folder = folder
        self.process = self.start()

    def start(self) -> ServerProcess:
        command = [sys.executable, "-m", "celery", "-A", "tests.support.apps.claim_app", "worker", "-l", "INFO"]
        command += ["--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        return ServerProcess(command, self.folder / "worker.log", cwd=self.folder, env=self.env)

    def noted(self, kind: str) -> list[dict[str, Any]]:
        lines: Any = self.redis.admin.lrange(kind, 0, -1)
        return [json.loads(line) for line in lines]

    def count(self, kind: str, task_id: str) -> int:
        return sum(note["id"] == task_id for note in self.noted(kind))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()


#: place -> policy -> messages at the workers, the verdict in the journal.
DECLARED = {
    "before claim": {"skip": (1, "enqueued"), "republish": (1, "enqueued")},
    "claimed": {"skip": (0, "uncertain"), "republish": (1, "enqueued")},
    "published": {"skip": (1, "uncertain"), "republish": (2, "enqueued")},
    "confirmed": {"skip": (1, "enqueued"), "republish": (1, "enqueued")},
}

EVERY = 3


@pytest.mark.timeout(240)
def test_a_leader_killed_at_each_step(
    rabbitmq: RabbitMQ, redis_server: RedisServer, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Each combination of place, policy and guard has its declared outcome."""
    queue, failpoint = f"queue-{uuid.uuid4().hex[:8]}", tmp_path / "failpoint"
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
    with ExitStack() as stack:
        worker = stack.enter_context(Worker(rabbitmq.url, redis_server, queue, tmp_path))
        cluster = stack.enter_context(
            BeatCluster(
                rabbitmq.url,
                lease_urls=redis_server.url,
                spec=spec,
                replicas=2,
                app="tests.support.apps.claim_app",
                settings=QUICK,
                config={"task_default_queue": queue},
                env={"FAILPOINT_FILE": str(failpoint), "RECORD_URL": redis_server.url},
            )
        )
        cluster.wait_until_up()
        # The standby has seen the leader's presence by then and need not wait for the lease.
        wait_for(lambda: len({note["id"] for note in worker.noted("ran")}) >= len(spec), 30, "what is due first")
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
                wait_for(lambda task_id=task_id, n=messages: worker.count("received", task_id) >= n, 10, name)
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


@pytest.mark.timeout(120)
def test_next_leader_of_another_release_republishes_each_open_claim(
    rabbitmq: RabbitMQ, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Its entries have another interval, so that the takeover writes a row for each of them."""
    queue, failpoint = f"queue-{uuid.uuid4().hex[:8]}", tmp_path / "failpoint"
    first = math.ceil(time.time())
    fast = {"every": 0.5, "first": first}
    many = {"every": 4, "first": first, "n": 20, "options": {"ha_beat": {"uncertain": "republish"}}}
    with BeatCluster(
        rabbitmq.url,
        lease_urls=redis_server.url,
        spec={"fast": fast, "many": many},
        replicas=2,
        app="tests.support.apps.claim_app",
        settings=QUICK,
        config={"task_default_queue": queue},
        env={"FAILPOINT_FILE": str(failpoint), "RECORD_URL": redis_server.url},
    ) as cluster:
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
        wait_for(lambda: not open_claims(cluster), 15, "no open claim")


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


# --- In the middle of a burst

BURST, SENT = 400, 100


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("fault", "uncertain"),
    [("SIGTERM", (0, 1)), ("broker stopped", (0, CHUNK)), ("broker frozen", (1, CHUNK))],
    ids=["SIGTERM", "stopped", "frozen"],
)
def test_a_burst_that_is_broken_off(
    rabbitmq: RabbitMQ,
    tmp_path: Path,
    fault: str,
    uncertain: tuple[int, int],
    found: Callable[[Report], None],
    figure: Callable[[str], None],
) -> None:
    """A stop leaves the message that it interrupts unknown, a connection without answers at most a chunk.

    The next leader enqueues the others once. The leader waits in mid-burst until the fault has happened.
    """
    failpoint, first = tmp_path / "failpoint", time.time() + 20
    options: dict[str, Any] = {
        "spec": {**HALF_SECOND, "burst": {"every": 3600, "first": first, "n": BURST}},
        "app": "tests.support.apps.claim_app",
        "env": {"FAILPOINT_FILE": str(failpoint)},
        "settings": {**QUICK, "stall_timeout": 60},
    }
    with scenario_on(rabbitmq, **options) as scenario:
        leader = scenario.begin()
        assert time.time() < first, "the replicas were not up in time"

        def in_burst() -> set[str]:
            return {m["entry"] for m in scenario.history.messages() if m["entry"].startswith("burst")}

        failpoint.write_text(f"before publish:{SENT}")
        held = failpoint.with_suffix(".done")
        wait_for(held.exists, 90, "the middle of the burst")
        # The broker has these, except for those of the other entry that were counted too.
        wait_for(lambda: len(in_burst()) > SENT // 2, 20, "messages of the burst")
        if fault == "SIGTERM":
            leader.terminate()
            held.unlink()
            leader.start()
        elif fault == "broker stopped":
            scenario.nemesis.broker_stop()
            held.unlink()
            time.sleep(1)
            scenario.nemesis.heal()
        else:
            rabbitmq.pause()
            held.unlink()
            scenario.nemesis.broker_pause(3)

        def verdicts() -> Counter[str]:
            records = [r for r in scenario.cluster.journal() if str(r.get("entry")).startswith("burst")]
            return Counter({record["entry"]: record["verdict"] for record in records if "verdict" in record}.values())

        wait_for(lambda: sum(verdicts().values()) == BURST and not open_claims(scenario.cluster), 60, "every verdict")
        settled(scenario)
        counts = verdicts()
        assert set(counts) <= {"enqueued", "uncertain"}
        assert uncertain[0] <= counts["uncertain"] <= uncertain[1]
        # The history's consumer may reconnect to the broker later than the leader.
        wait_for(lambda: BURST - len(in_burst()) <= counts["uncertain"], 15, "the messages of the burst")
        figure(f"a burst of {BURST} on RabbitMQ, {fault} after {SENT}: {dict(counts)}")
        found(checked(scenario))


# --- The broker is unreachable


def test_the_leader_dies_and_another_goes_on(rabbitmq: RabbitMQ, found: Callable[[Report], None]) -> None:
    """It uses the claim path, and logs why."""
    with scenario_on(rabbitmq) as scenario:
        leader = scenario.begin()
        leader.wait_for_log("action=path_chosen path=claim reason=broker_not_redis")
        scenario.nemesis.kill_leader(down=0)
        scenario.cluster.wait_for_leader(other_than=leader)
        settled(scenario)
        found(checked(scenario))


@pytest.mark.parametrize("policy", ["skip", "republish"])
def test_a_connection_cut_between_publish_and_confirm(
    rabbitmq: RabbitMQ, policy: str, found: Callable[[Report], None]
) -> None:
    """Under skip there is one message, recorded as uncertain; under republish there are two."""
    with scenario_on(rabbitmq, settings={**QUICK, "uncertain": policy}) as scenario:
        leader = scenario.begin()
        scenario.nemesis.broker_proxy(leader).cut_reply_after(PUBLISH).wait()
        settled(scenario)
        messages = scenario.history.messages()
        uncertain = [record for record in scenario.cluster.journal() if record.get("verdict") == "uncertain"]
        twice = duplicates_by_occurrence(messages)
        if policy == "skip":
            assert len(uncertain) == 1
            assert uncertain[0]["why"] == UncertainReason.NO_ANSWER
            assert any(message["id"] == uncertain[0]["id"] for message in messages)
            leader.wait_for_log("action=occurrence_uncertain entry=fast")
            found(checked(scenario))
        else:
            assert uncertain == []
            assert len(twice) == 1
            repeated = [task_id for task_id, n in Counter(message["id"] for message in messages).items() if n > 1]
            assert len(repeated) == 1
            enqueued = [record["id"] for record in scenario.cluster.journal() if record.get("verdict") == "enqueued"]
            assert enqueued.count(repeated[0]) == 1
        assert scenario.cluster.leader() is leader


def test_the_broker_stopped_and_started(rabbitmq: RabbitMQ, found: Callable[[Report], None]) -> None:
    """No process ends, nothing is duplicated, and unsent occurrences are in the journal."""
    with scenario_on(rabbitmq) as scenario:
        scenario.begin()
        scenario.nemesis.broker_stop(4)
        settled(scenario)
        found(checked(scenario))


def test_a_frozen_broker(rabbitmq: RabbitMQ, found: Callable[[Report], None]) -> None:
    """It does not answer until after a handover, then accepts the messages in its buffers."""
    with scenario_on(rabbitmq) as scenario:
        scenario.begin()
        scenario.nemesis.broker_pause(8)
        settled(scenario)
        found(checked(scenario))
        uncertain = [record for record in scenario.cluster.journal() if record.get("verdict") == "uncertain"]
        assert 1 <= len(uncertain) <= 3


@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_a_broker_that_only_the_leader_cannot_reach(
    rabbitmq: RabbitMQ, fault: str, found: Callable[[Report], None]
) -> None:
    """It hands over to a replica that reaches it and becomes a standby."""
    with scenario_on(rabbitmq) as scenario:
        leader = scenario.begin()
        proxy = scenario.nemesis.broker_proxy(leader)
        getattr(proxy, fault)()
        scenario.cluster.wait_for_leader(20, other_than=leader)
        settled(scenario)
        leader.wait_for_log("reason=broker_unreachable")
        found(checked(scenario))
        proxy.heal()


def test_a_failed_publish_is_retried_to_its_deadline(rabbitmq: RabbitMQ, found: Callable[[Report], None]) -> None:
    """Before the deadline it is sent late, with its original instant; after it, it is skipped with a reason."""
    spec = {
        **HALF_SECOND,
        "soon": {"every": 3600, "first": math.ceil(time.time()) + 10},
        "never": {"every": 3600, "first": math.ceil(time.time()) + 16},
    }
    with scenario_on(rabbitmq, spec=spec, replicas=1, settings={**QUICK, "publish_deadline": 4}) as scenario:
        leader = scenario.begin()
        proxy = scenario.nemesis.broker_proxy(leader)
        wait_until(spec["soon"]["first"] - 1)
        proxy.refuse()
        wait_until(spec["soon"]["first"] + 1.5)
        proxy.accept()
        scenario.history.wait_for_messages(1, entry="soon")
        wait_until(spec["never"]["first"] - 1)
        proxy.refuse()
        reason = wait_for(lambda: skip_of(scenario, "never"), 20, "its being skipped")
        assert reason == "not_published"
        leader.wait_for_log("action=occurrence_skipped entry=never")
        proxy.accept()
        settled(scenario)
        (sent,) = scenario.history.messages("soon")
        assert datetime.fromisoformat(sent["scheduled_at"]).timestamp() == spec["soon"]["first"]
        assert scenario.history.messages("never") == []
        found(checked(scenario))


def wait_until(when: float) -> None:
    time.sleep(max(when - time.time(), 0))


def skip_of(scenario: ClusterScenario, entry: str) -> str:
    records = [record for record in scenario.cluster.journal() if record.get("entry") == entry]
    return next((record["why"] for record in records if record.get("verdict") == "skipped"), "")


def test_an_entry_whose_exchange_does_not_exist_hinders_no_other(
    rabbitmq: RabbitMQ, found: Callable[[Report], None]
) -> None:
    """The broker refuses it by name. It is retried, and nothing is claimed meanwhile."""
    spec = {**HALF_SECOND, "lost": {"every": 0.5, "options": {"exchange": "nowhere", "routing_key": "x"}}}
    with scenario_on(rabbitmq, spec=spec) as scenario:
        leader = scenario.begin()
        leader.wait_for_log("action=entry_failed entry=lost reason=refused detail=NotFound")
        settled(scenario)
        assert scenario.history.messages("lost") == []
        assert scenario.cluster.ledger()["lost"]["verdict"] == "armed"
        found(checked(scenario))


# --- A Redis that is not the lease's


def test_a_redis_broker_that_is_not_the_leases(redis_server: RedisServer, found: Callable[[Report], None]) -> None:
    """It claims, confirms and changes leaders, and logs why."""
    with need(RedisServer) as broker, scenario_on(broker, redis=redis_server) as scenario:
        leader = scenario.begin()
        leader.wait_for_log("action=path_chosen path=claim reason=broker_on_other_redis")
        scenario.nemesis.kill_leader(down=0)
        scenario.cluster.wait_for_leader(other_than=leader)
        settled(scenario)
        scenario.nemesis.broker_pause(2)
        settled(scenario)
        found(checked(scenario))


def test_another_database_of_the_leases_redis(redis_server: RedisServer) -> None:
    """Scripts reach only one database, so this needs the claim path too."""
    with BeatCluster(
        redis_server.url_for(1), lease_urls=redis_server.url, spec=HALF_SECOND, replicas=1, settings=QUICK
    ) as cluster:
        leader: Replica = cluster.wait_for_leader()
        leader.wait_for_log("action=path_chosen path=claim reason=broker_on_other_redis")
        leader.wait_for_log("action=enqueued entry=fast", count=3)
        count: Any = redis_server.client(db=1).llen("celery")
        assert count >= 3


# --- The guard in a real worker


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_retries_and_second_messages_at_a_real_worker(
    broker: str, redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A retry and a message of the same sending run; one of another sending is acknowledged and dropped."""
    from tests.support.apps.claim_app import app

    url = redis_server.url_for(2) if broker == "redis" else request.getfixturevalue("rabbitmq").url
    queue = f"queue-{uuid.uuid4().hex[:8]}"
    with Worker(url, redis_server, queue, tmp_path) as worker:

        def send(task: str, task_id: str, mark: str) -> None:
            header = {"cluster": "tick", "entry": "e", "scheduled_at": "2030-01-01T12:00:00+00:00", "publish": mark}
            with app.connection_for_write(url) as connection:
                app.send_task(
                    task, task_id=task_id, headers={"ha_beat": header}, connection=connection, queue=queue, retry=False
                )

        send("again", "1", "first")
        wait_for(lambda: worker.count("ran", "1") == 2, 30, f"a run and its retry\n{worker.process.log_tail()}")
        send("guarded", "2", "first")
        send("guarded", "2", "first")
        send("guarded", "2", "second")
        wait_for(lambda: worker.count("dropped", "2") == 1, 10, "a drop")
        assert worker.count("ran", "2") == 2
        send("guarded", "3", "first")
        wait_for(lambda: worker.count("ran", "3") == 1, 10, "the next")
        dropped = "action=message_dropped entry=e scheduled_at=2030-01-01T12:00:00+00:00 task=guarded task_id=2"
        assert dropped in worker.process.log_text()
        # Acknowledged: no other worker receives it.
        worker.process.stop()
        worker.process = worker.start()
        send("guarded", "4", "first")
        wait_for(lambda: worker.count("ran", "4") == 1, 30, "a run at the next worker")
        assert worker.count("received", "2") == 3


def test_a_redelivery_to_a_real_worker_runs(rabbitmq: RabbitMQ, redis_server: RedisServer, tmp_path: Path) -> None:
    """The worker is killed in the middle of the task: the same message, with the same mark, runs on the next."""
    from tests.support.apps.claim_app import app

    queue = f"queue-{uuid.uuid4().hex[:8]}"
    with Worker(rabbitmq.url, redis_server, queue, tmp_path) as worker:
        header = {"cluster": "tick", "entry": "e", "scheduled_at": "2030-01-01T12:00:00+00:00", "publish": "only"}
        with app.connection_for_write(rabbitmq.url) as connection:
            app.send_task("linger", task_id="1", headers={"ha_beat": header}, connection=connection, queue=queue)
        wait_for(lambda: worker.count("ran", "1") == 1, 30, "the first run")
        worker.process.kill()
        worker.process = worker.start()
        wait_for(lambda: worker.count("ran", "1") == 2, 30, "the run of the redelivery")
        assert worker.noted("dropped") == []
