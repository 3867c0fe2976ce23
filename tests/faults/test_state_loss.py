"""Redis loses its state in every way.

The loss is noticed within a renewal. No occurrence is enqueued twice: one that may have been enqueued before the loss
gets a verdict instead.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.checker import Report, instant
from tests.faults.history import boottime
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RedisServer, need

pytestmark = pytest.mark.slow

FAST, SLOW = 0.2, 1.5
SPEC = {"fast": {"every": FAST}, "slow": {"every": SLOW}}

# Renewals are frequent and the lease is long, to distinguish a loss noticed at a renewal from one noticed later.
SETTINGS = {"lease_ttl": 20, "renew_interval": 0.5, "command_timeout": 1.5}
SHORT_LEASE = {"lease_ttl": 2, "renew_interval": 0.5, "command_timeout": 0.9}


@contextmanager
def volatile_scenario(settings: dict[str, object] | None = None, **redis_options: Any) -> Iterator[ClusterScenario]:
    """Start three replicas on a Redis that keeps nothing over a restart. Each leads or has read the ledger."""
    with (
        need(lambda: RedisServer(**redis_options)) as server,
        ClusterScenario(redis=server, proxied=False, spec=SPEC, settings=SETTINGS | (settings or {})) as scenario,
    ):
        scenario.begin()
        scenario.history.wait_for_messages(2, 20, "slow")
        time.sleep(1.5)
        if not server.appendonly:
            save_without_messages(server.admin)
        yield scenario


def save_without_messages(redis: Any) -> None:
    """Save with an empty queue: the snapshot would restore messages that were already consumed."""
    for _ in range(200):
        redis.client_pause(1000, all=False)
        try:
            if not redis.llen("celery"):
                redis.save()
                return
        finally:
            redis.client_unpause()
        time.sleep(0.02)
    raise AssertionError("the queue is never empty")


def go_on(scenario: ClusterScenario) -> float:
    """Wait until both entries run again; return the seconds from the last fault to the fast entry's message."""
    struck = scenario.history.faults()[-1]["t"]
    first = scenario.history.wait_for_message_after(struck + 1, "fast", 40)
    scenario.history.wait_for_message_after(struck + 2.5, "slow", 40)
    scenario.more(10, "fast", 10)
    return float(first["t"] - struck)


def judge(scenario: ClusterScenario) -> Report:
    """Judge the scenario, and assert that the slow entry kept its grid."""
    report = scenario.judge()
    first, *others = [instant(message["scheduled_at"]) for message in scenario.history.messages("slow")]
    phases = [(one - first).total_seconds() % SLOW for one in others]
    assert all(min(phase, SLOW - phase) < 0.0005 for phase in phases), "the position was not restored"
    return report


def losses_logged(scenario: ClusterScenario) -> int:
    return sum(replica.log_text().count("action=state_lost") for replica in scenario.cluster)


def delete(*names: str) -> Callable[[ClusterScenario], None]:
    def do(scenario: ClusterScenario) -> None:
        scenario.history.fault("delete " + " and ".join(names))
        scenario.redis.admin.delete(*(scenario.cluster.key(name) for name in names))

    return do


def restart_from_old_snapshot(scenario: ClusterScenario) -> None:
    """Restart from the snapshot of the scenario's start."""
    scenario.more(12, "fast", 10)
    scenario.remember_skips()  # of a takeover since the start
    scenario.nemesis.redis_kill(0.0)


def restart_complete(scenario: ClusterScenario, down: float = 0.0) -> None:
    """Stop it and start it with all its data, including unanswered commands."""
    scenario.history.fault("restart_complete", "start")
    if not scenario.redis.appendonly:
        scenario.redis.admin.config_set("save", "3600 1")  # the server saves on shutdown
    scenario.redis.stop()
    time.sleep(down)
    scenario.redis.start()
    scenario.history.fault("restart_complete", "end")


LOSSES = [
    pytest.param(lambda scenario: scenario.nemesis.redis_flush(), id="FLUSHALL"),
    pytest.param(delete("ledger"), id="ledger-deleted"),
    pytest.param(lambda scenario: scenario.nemesis.redis_restart(persist=False), id="restart-empty"),
    pytest.param(restart_from_old_snapshot, id="restart-from-old-snapshot"),
    pytest.param(delete("lease", "ledger"), id="both-deleted"),
    pytest.param(delete("ledger", "journal"), id="ledger-and-journal-deleted"),
]


@pytest.mark.parametrize("lose", LOSSES)
def test_lost_state_is_noticed_and_no_occurrence_runs_twice(lose, found):
    """Positions continue from the memory of the replicas. Uncertain occurrences are skipped, with a record."""
    with volatile_scenario() as scenario:
        epoch = scenario.cluster.epoch() or 0
        scenario.remember_skips()
        lose(scenario)
        struck = scenario.history.faults()[-1]["t"]
        scenario.cluster.wait_for_epoch_above(epoch)
        noticed = boottime() - struck
        back = go_on(scenario)
        report = judge(scenario)
        assert losses_logged(scenario) >= 1
        # A snapshot may contain all that was enqueued.
        assert report.skipped["state_loss"] > 0 or scenario.history.faults("redis_kill")
        assert noticed < SETTINGS["lease_ttl"] / 3
        found(f"noticed after {noticed:.2f} s, running again after {back:.1f} s")
        found(report)


def test_deleted_lease_loses_no_occurrence(found):
    """The ledger is intact: a replica leads again within a renewal, and every occurrence is enqueued."""
    with volatile_scenario() as scenario:
        epoch = scenario.cluster.epoch() or 0
        delete("lease")(scenario)
        assert scenario.cluster.wait_for_epoch_above(epoch) > epoch
        go_on(scenario)
        report = judge(scenario)
        assert losses_logged(scenario) == 0
        assert "state_loss" not in report.skipped
        found(report)


@pytest.mark.parametrize("leader_dies", [False, True])
def test_restart_with_all_data_is_no_loss(leader_dies: bool, found):
    """The ledger is intact, and occurrences that were due during the restart are caught up."""
    with volatile_scenario(
        {"lease_ttl": 4} if leader_dies else {}, appendonly=True, extra_args=("--appendfsync", "always")
    ) as scenario:
        if leader_dies:
            scenario.nemesis.kill_leader()
        restart_complete(scenario, down=1.5)
        scenario.cluster.heal()
        go_on(scenario)
        report = judge(scenario)
        assert losses_logged(scenario) == 0
        assert report.skipped["coalesced"] > 0
        found(report)


def test_restart_from_a_complete_snapshot_is_a_loss(found):
    """A complete snapshot can't be recognized. Occurrences that were due until the restart are skipped and counted."""
    with volatile_scenario() as scenario:
        restart_complete(scenario, down=1.5)
        go_on(scenario)
        report = judge(scenario)
        assert losses_logged(scenario) >= 1
        assert report.skipped["state_loss"] > 0
        found(report)


@pytest.mark.parametrize("lose", LOSSES[:4])
def test_positions_survive_the_loss_of_leader_and_data(lose, found):
    """The leader dies with the data. The positions that a standby read from the journal are enough."""
    with volatile_scenario({"lease_ttl": 4}) as scenario:
        leader = scenario.cluster.wait_for_leader()
        scenario.redis.pause()
        leader.kill()
        scenario.redis.resume()
        scenario.remember_skips()
        lose(scenario)
        leader.start()
        go_on(scenario)
        found(judge(scenario))


def test_catch_up_after_a_loss_repeats_at_most_the_last_due(found):
    """Under `catch_up` nothing is lost, and only occurrences that the new leader can't know may run again."""
    with volatile_scenario({"on_state_loss": "catch_up"}) as scenario:
        scenario.nemesis.redis_flush()
        struck = scenario.history.faults()[-1]["t"]
        go_on(scenario)
        scenario.cluster.assert_all_alive()
        report = scenario.report(scenario.intervals)
        # The latest missed occurrence stands for all of them, by the misfire policy.
        declared = {"duplicate", "duplicate id", "out of order", "two verdicts"}
        assert {problem.kind for problem in report.problems} <= declared, str(report)
        # It may have been enqueued before, as may those that it stands for.
        journal = scenario.cluster.journal()
        enqueued = {(r["entry"], r["at"]) for r in journal if r.get("verdict") == "enqueued"}
        doubted = {(r["entry"], r["until"]) for r in journal if r.get("why") == "state_loss"}
        assert doubted <= enqueued
        seen: dict[str, float] = {}
        for message in scenario.history.messages():
            first = seen.setdefault(str(message["id"]), message["t"])
            assert first > struck - 2.5 or first == message["t"], f"{message} ran long before"
        assert report.duplicates <= 2, str(report)
        found(report)


def test_evicted_ledger_is_noticed(found):
    with volatile_scenario(maxmemory="12mb", extra_args=("--maxmemory-policy", "allkeys-random")) as scenario:
        admin, ledger = scenario.redis.admin, scenario.cluster.key("ledger")
        scenario.history.fault("eviction")
        for number in range(3000):
            admin.set(f"junk:{number}", b"x" * 500_000)
            if not admin.exists(ledger):
                break
        else:
            pytest.fail("the ledger was not evicted")
        admin.config_set("maxmemory", 0)
        go_on(scenario)
        scenario.cluster.assert_all_alive()
        report = scenario.clean_report()
        assert losses_logged(scenario) >= 1
        found(report)


def test_full_redis_keeps_its_leader(found):
    """Without memory nothing can be enqueued, but renewals pass, and the same leader continues afterwards."""
    with volatile_scenario(SHORT_LEASE) as scenario:
        epoch = scenario.cluster.epoch()
        scenario.history.fault("full")
        scenario.redis.admin.config_set("maxmemory", 1)
        # A leader keeps the lease for a shorter time if its broker is unreachable.
        time.sleep(7.0)
        during = [m for m in scenario.history.messages() if m["t"] > scenario.history.faults()[-1]["t"] + 0.5]
        scenario.redis.admin.config_set("maxmemory", 0)
        assert not during
        go_on(scenario)
        assert scenario.cluster.epoch() == epoch
        found(judge(scenario))


def test_read_only_redis_loses_no_occurrence(found):
    """A replica without its master takes no writes: there is no leader, no process exits, and nothing is lost."""
    with volatile_scenario(SHORT_LEASE) as scenario:
        scenario.history.fault("read-only")
        scenario.redis.admin.replicaof("127.0.0.1", 1)
        time.sleep(4.0)
        scenario.redis.admin.replicaof("NO", "ONE")
        scenario.history.fault("writable again")
        go_on(scenario)
        found(judge(scenario))


def test_loading_redis_loses_no_occurrence(found):
    with volatile_scenario(
        extra_args=("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    ) as scenario:
        pipeline = scenario.redis.admin.pipeline()
        for number in range(4000):
            pipeline.set(f"junk:{number}", "x" * 100)
        pipeline.execute()
        restart_complete(scenario)
        go_on(scenario)
        found(judge(scenario))
