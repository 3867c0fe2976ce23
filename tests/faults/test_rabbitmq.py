"""Faults of a broker that is not the lease's Redis, RabbitMQ or another Redis, under real processes."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ha_beat.dispatch.claims.send_rate import CHUNK
from ha_beat.reasons import UncertainReason
from tests.faults.checker import Interval, Report, duplicates_by_occurrence
from tests.faults.claims import CLAIM_APP, QUICK, new_queue, open_claims, wait_until_resolved
from tests.faults.cluster import BeatCluster
from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RabbitMQ, RedisServer, need, wait_for

pytestmark = pytest.mark.slow

Found = Callable[[Report], None]

HALF_SECOND = {"fast": {"every": 0.5}}
PUBLISH = containing(b"ha_beat", b"scheduled_at")


@contextmanager
def scenario_on(broker: RabbitMQ | RedisServer, **options: Any) -> Iterator[ClusterScenario]:
    """Start replicas with their own queue, which a consumer empties."""
    queue = new_queue()
    given: dict[str, Any] = {"spec": HALF_SECOND, "replicas": 2, "settings": QUICK, **options}
    with ClusterScenario(broker=broker, queues=[queue], config={"task_default_queue": queue}, **given) as made:
        yield made


def settle(scenario: ClusterScenario) -> None:
    """Wait until messages arrive and no claim is open."""
    scenario.more(3)
    wait_until_resolved(scenario.cluster)


def records_with(scenario: ClusterScenario, verdict: str) -> list[dict[str, Any]]:
    return [record for record in scenario.cluster.journal() if record.get("verdict") == verdict]


# --- In the middle of a burst

BURST, SENT = 400, 100


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("fault", "uncertain"),
    [("SIGTERM", (0, 1)), ("broker stopped", (0, CHUNK)), ("broker frozen", (1, CHUNK))],
    ids=["SIGTERM", "stopped", "frozen"],
)
def test_fault_in_a_burst_leaves_a_chunk_uncertain_at_most(
    rabbitmq: RabbitMQ,
    tmp_path: Path,
    fault: str,
    uncertain: tuple[int, int],
    found: Found,
    figure: Callable[[str], None],
):
    """After a stop only the message that was interrupted may be uncertain.

    The next leader enqueues the others once. The leader waits in mid-burst until the fault has happened.
    """
    failpoint, first = tmp_path / "failpoint", time.time() + 20
    options: dict[str, Any] = {
        "spec": {**HALF_SECOND, "burst": {"every": 3600, "first": first, "n": BURST}},
        "app": CLAIM_APP,
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
        settle(scenario)
        counts = verdicts()
        assert set(counts) <= {"enqueued", "uncertain"}
        assert uncertain[0] <= counts["uncertain"] <= uncertain[1]
        # The history's consumer may reconnect to the broker later than the leader.
        wait_for(lambda: BURST - len(in_burst()) <= counts["uncertain"], 15, "the messages of the burst")
        figure(f"a burst of {BURST} on RabbitMQ, {fault} after {SENT}: {dict(counts)}")
        found(scenario.judge())


# --- The broker is unreachable


def test_death_of_the_leader_loses_and_repeats_nothing(rabbitmq: RabbitMQ, found: Found):
    """The leader logs that it uses claims, and the reason."""
    with scenario_on(rabbitmq) as scenario:
        leader = scenario.begin()
        leader.wait_for_log("action=path_chosen path=claim reason=broker_not_redis")
        scenario.nemesis.kill_leader(down=0)
        scenario.cluster.wait_for_leader(other_than=leader)
        settle(scenario)
        found(scenario.judge())


@pytest.mark.parametrize("policy", ["skip", "republish"])
def test_lost_confirmation_is_uncertain_or_a_second_message(rabbitmq: RabbitMQ, policy: str, found: Found):
    """One message under skip, recorded as uncertain; two under republish."""
    with scenario_on(rabbitmq, settings={**QUICK, "uncertain": policy}) as scenario:
        leader = scenario.begin()
        scenario.nemesis.broker_proxy(leader).cut_reply_after(PUBLISH).wait()
        settle(scenario)
        messages = scenario.history.messages()
        uncertain = records_with(scenario, "uncertain")
        if policy == "skip":
            (record,) = uncertain
            assert record["why"] == UncertainReason.NO_ANSWER
            assert any(message["id"] == record["id"] for message in messages)
            leader.wait_for_log("action=occurrence_uncertain entry=fast")
            found(scenario.judge())
        else:
            assert uncertain == []
            assert len(duplicates_by_occurrence(messages)) == 1
            (repeated,) = [task_id for task_id, n in Counter(message["id"] for message in messages).items() if n > 1]
            assert [record["id"] for record in records_with(scenario, "enqueued")].count(repeated) == 1
        assert scenario.cluster.leader() is leader


def test_restart_of_the_broker_ends_no_process(rabbitmq: RabbitMQ, found: Found):
    """Nothing is duplicated, and occurrences that were not sent are in the journal."""
    with scenario_on(rabbitmq) as scenario:
        scenario.begin()
        scenario.nemesis.broker_stop(4)
        settle(scenario)
        found(scenario.judge())


def test_frozen_broker_leaves_few_messages_uncertain(rabbitmq: RabbitMQ, found: Found):
    """It does not answer until after a handover, then accepts the messages in its buffers."""
    with scenario_on(rabbitmq) as scenario:
        scenario.begin()
        scenario.nemesis.broker_pause(8)
        settle(scenario)
        found(scenario.judge())
        assert 1 <= len(records_with(scenario, "uncertain")) <= 3


@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_leader_that_cannot_reach_the_broker_hands_over(rabbitmq: RabbitMQ, fault: str, found: Found):
    """Another replica reaches the broker. The former leader becomes a standby."""
    with scenario_on(rabbitmq) as scenario:
        leader = scenario.begin()
        proxy = scenario.nemesis.broker_proxy(leader)
        getattr(proxy, fault)()
        scenario.cluster.wait_for_leader(20, other_than=leader)
        settle(scenario)
        leader.wait_for_log("reason=broker_unreachable")
        found(scenario.judge())
        proxy.heal()


def test_failed_publish_is_retried_to_its_deadline(rabbitmq: RabbitMQ, found: Found):
    """Before the deadline it is sent late, with its original instant; after it, it is skipped with a reason."""
    soon, never = (math.ceil(time.time()) + seconds for seconds in (10, 16))
    spec = {**HALF_SECOND, "soon": {"every": 3600, "first": soon}, "never": {"every": 3600, "first": never}}
    with scenario_on(rabbitmq, spec=spec, replicas=1, settings={**QUICK, "publish_deadline": 4}) as scenario:
        leader = scenario.begin()
        proxy = scenario.nemesis.broker_proxy(leader)
        wait_until(soon - 1)
        proxy.refuse()
        wait_until(soon + 1.5)
        proxy.accept()
        scenario.history.wait_for_messages(1, entry="soon")
        wait_until(never - 1)
        proxy.refuse()

        def skips() -> list[str]:
            return [record["why"] for record in records_with(scenario, "skipped") if record["entry"] == "never"]

        assert wait_for(skips, 20, "the skip")[0] == "not_published"
        leader.wait_for_log("action=occurrence_skipped entry=never")
        proxy.accept()
        settle(scenario)
        (sent,) = scenario.history.messages("soon")
        assert datetime.fromisoformat(sent["scheduled_at"]).timestamp() == soon
        assert scenario.history.messages("never") == []
        found(scenario.judge())


def wait_until(when: float) -> None:
    time.sleep(max(when - time.time(), 0))


def test_entry_whose_exchange_does_not_exist_hinders_no_other(rabbitmq: RabbitMQ, found: Found):
    """The broker's refusal names the exchange. The entry is retried, and no claim stays."""
    spec = {**HALF_SECOND, "lost": {"every": 0.5, "options": {"exchange": "nowhere", "routing_key": "x"}}}
    with scenario_on(rabbitmq, spec=spec) as scenario:
        leader = scenario.begin()
        leader.wait_for_log("action=entry_failed entry=lost reason=refused detail=NotFound")
        settle(scenario)
        assert scenario.history.messages("lost") == []
        assert scenario.cluster.ledger()["lost"]["verdict"] == "armed"
        scenario.cluster.assert_all_alive()
        found(scenario.clean_report([Interval("fast", 0.5)]))


# --- A Redis that is not the lease's

OTHER_REDIS = "action=path_chosen path=claim reason=broker_on_other_redis"


def test_redis_broker_that_is_not_the_leases_uses_claims(redis_server: RedisServer, found: Found):
    """Also over a change of leader and a pause of the broker."""
    with need(RedisServer) as broker, scenario_on(broker, redis=redis_server) as scenario:
        leader = scenario.begin()
        leader.wait_for_log(OTHER_REDIS)
        scenario.nemesis.kill_leader(down=0)
        scenario.cluster.wait_for_leader(other_than=leader)
        settle(scenario)
        scenario.nemesis.broker_pause(2)
        settle(scenario)
        found(scenario.judge())


def test_broker_in_another_database_of_the_leases_redis_uses_claims(redis_server: RedisServer):
    """A script reaches only one database."""
    with BeatCluster(
        redis_server.url_for(1), lease_urls=redis_server.url, spec=HALF_SECOND, replicas=1, settings=QUICK
    ) as cluster:
        leader = cluster.wait_for_leader()
        leader.wait_for_log(OTHER_REDIS)
        leader.wait_for_log("action=enqueued entry=fast", count=3)
        count: Any = redis_server.client(db=1).llen("celery")
        assert count >= 3
