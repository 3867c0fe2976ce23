"""Redis loses its state in every way: the loss is noticed within a renewal, nothing is enqueued twice, and what may
have been enqueued before gets a verdict instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.checker import Interval, Report, instant
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RedisServer, need, wait_for

FAST, SLOW = 0.2, 1.5
SPEC = {"fast": {"every": FAST}, "slow": {"every": SLOW}}
EXPECTED = [Interval("fast", FAST), Interval("slow", SLOW)]

# Renewals are frequent and the lease is long, to distinguish a loss noticed at a renewal from one noticed later.
SETTINGS = {"lease_ttl": 20, "renew_interval": 0.5, "command_timeout": 1.5}


@contextmanager
def volatile_scenario(settings: dict[str, object] | None = None, **redis_options: object) -> Iterator[ClusterScenario]:
    """Start three replicas on a Redis that keeps nothing over a restart."""
    with (
        need(lambda: RedisServer(**redis_options)) as server,  # type: ignore[arg-type]
        ClusterScenario(redis=server, proxied=False, spec=SPEC, settings={**SETTINGS, **(settings or {})}) as scenario,
    ):
        yield scenario


def settle(scenario: ClusterScenario) -> None:
    """Wait until each replica leads or stands by, and the standbys have read the ledger."""
    scenario.begin()
    scenario.history.wait_for_messages(2, 20, "slow")
    time.sleep(1.5)
    if not scenario.redis.appendonly:
        save_without_messages(scenario.redis.admin)


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


def phase(scenario: ClusterScenario) -> set[float]:
    """Return the phase of the slow entry's instants on their grid."""
    instants = [instant(message["scheduled_at"]) for message in scenario.history.messages("slow")]
    return {round((one - instants[0]).total_seconds() % SLOW, 3) % SLOW for one in instants}


def go_on(scenario: ClusterScenario) -> float:
    """Wait until both entries run again; return the seconds from the last fault to the fast one's run."""
    struck = scenario.history.faults()[-1]["t"]
    first = wait_for(
        lambda: [m for m in scenario.history.messages("fast") if m["t"] > struck + 1], 40, "messages after the fault"
    )[0]
    wait_for(lambda: [m for m in scenario.history.messages("slow") if m["t"] > struck + 2.5], 40, "the slow entry")
    scenario.more(10, "fast", 10)
    return float(first["t"]) - float(struck)


def judge(scenario: ClusterScenario) -> Report:
    scenario.cluster.assert_all_alive()
    report = scenario.clean_report(EXPECTED)
    assert phase(scenario) == {0.0}, "the position was not restored"
    return report


def lost_state_was_said(scenario: ClusterScenario) -> int:
    return sum(replica.log_text().count("action=state_lost") for replica in scenario.cluster)


def flush(scenario: ClusterScenario) -> None:
    scenario.nemesis.redis_flush()


def delete(*names: str) -> Callable[[ClusterScenario], None]:
    def do(scenario: ClusterScenario) -> None:
        scenario.history.fault("delete " + " and ".join(names))
        scenario.redis.admin.delete(*(scenario.cluster.key(name) for name in names))

    return do


def restart_empty(scenario: ClusterScenario) -> None:
    scenario.nemesis.redis_restart(persist=False)


def restart_from_old_snapshot(scenario: ClusterScenario) -> None:
    """Restart from the last snapshot, made by `settle`."""
    scenario.more(12, "fast", 10)
    scenario.remember_skips()  # of a takeover meanwhile
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
    pytest.param(flush, id="FLUSHALL"),
    pytest.param(delete("ledger"), id="ledger-deleted", marks=pytest.mark.slow),
    pytest.param(restart_empty, id="restart-empty", marks=pytest.mark.slow),
    pytest.param(restart_from_old_snapshot, id="restart-from-old-snapshot", marks=pytest.mark.slow),
    pytest.param(delete("lease", "ledger"), id="both-deleted", marks=pytest.mark.slow),
    pytest.param(delete("ledger", "journal"), id="ledger-and-journal-deleted", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("lose", LOSSES)
def test_lost_state_is_noticed_and_nothing_runs_twice(lose: Callable[[ClusterScenario], None], found):
    """Positions continue from what the replicas remember. Uncertain occurrences are skipped, with a record."""
    with volatile_scenario() as scenario:
        settle(scenario)
        epoch = scenario.cluster.epoch() or 0
        scenario.remember_skips()
        lose(scenario)
        struck = scenario.history.faults()[-1]["t"]
        scenario.cluster.wait_for_epoch_above(epoch)
        noticed = time.clock_gettime(time.CLOCK_BOOTTIME) - struck
        back = go_on(scenario)
        report = judge(scenario)
        assert lost_state_was_said(scenario) >= 1
        assert report.skipped["state_loss"] > 0 or scenario.history.faults("redis_kill"), (
            "only a snapshot's rest is in doubt"
        )
        assert noticed < SETTINGS["lease_ttl"] / 3
        found(f"noticed after {noticed:.2f} s, running again after {back:.1f} s")
        found(report)


@pytest.mark.slow
def test_a_deleted_lease_loses_nothing(found):
    """The ledger is intact: a replica leads again within a renewal, and every occurrence is enqueued."""
    with volatile_scenario() as scenario:
        settle(scenario)
        epoch = scenario.cluster.epoch() or 0
        delete("lease")(scenario)
        assert scenario.cluster.wait_for_epoch_above(epoch) > epoch
        go_on(scenario)
        report = judge(scenario)
        assert lost_state_was_said(scenario) == 0
        assert "state_loss" not in report.skipped
        found(report)


@pytest.mark.slow
@pytest.mark.parametrize("leader_dies", [False, True])
def test_a_restart_with_all_data_is_no_loss(leader_dies: bool, found):
    """The new server process has all data: the ledger is intact, and what was due meanwhile is caught up."""
    with volatile_scenario(
        {"lease_ttl": 4} if leader_dies else {}, appendonly=True, extra_args=("--appendfsync", "always")
    ) as scenario:
        settle(scenario)
        if leader_dies:
            scenario.nemesis.kill_leader()
        restart_complete(scenario, down=1.5)
        scenario.cluster.heal()
        go_on(scenario)
        report = judge(scenario)
        assert lost_state_was_said(scenario) == 0
        assert report.skipped["coalesced"] > 0
        found(report)


@pytest.mark.slow
def test_a_restart_from_a_snapshot_is_a_loss_even_a_complete_one(found):
    """A complete snapshot can't be recognized, so what was due until the server was back is skipped and counted."""
    with volatile_scenario() as scenario:
        settle(scenario)
        restart_complete(scenario, down=1.5)
        go_on(scenario)
        report = judge(scenario)
        assert lost_state_was_said(scenario) >= 1
        assert report.skipped["state_loss"] > 0
        found(report)


@pytest.mark.slow
@pytest.mark.parametrize("lose", LOSSES[:4])
def test_positions_outlive_the_leader_and_the_data(lose: Callable[[ClusterScenario], None], found):
    """The leader dies with the data. The positions that a standby read from the journal are enough."""
    with volatile_scenario({"lease_ttl": 4}) as scenario:
        settle(scenario)
        leader = scenario.cluster.wait_for_leader()
        scenario.redis.pause()
        leader.kill()
        scenario.redis.resume()
        scenario.remember_skips()
        lose(scenario)
        leader.start()
        go_on(scenario)
        found(judge(scenario))


@pytest.mark.slow
def test_catching_up_after_a_loss_repeats_at_most_what_was_last_due(found):
    """Under `catch_up` nothing is lost, and only occurrences that the new leader can't know may run again."""
    with volatile_scenario({"on_state_loss": "catch_up"}) as scenario:
        settle(scenario)
        flush(scenario)
        struck = scenario.history.faults()[-1]["t"]
        go_on(scenario)
        scenario.cluster.assert_all_alive()
        report = scenario.report(EXPECTED)
        # The latest missed occurrence stands for all of them, by the misfire policy.
        declared = {"duplicate", "duplicate id", "out of order", "two verdicts"}
        assert {problem.kind for problem in report.problems} <= declared, str(report)
        assert "state_loss" not in report.skipped
        seen: dict[str, float] = {}
        for message in scenario.history.messages():
            first = seen.setdefault(str(message["id"]), message["t"])
            assert first > struck - 2.5 or first == message["t"], f"{message} ran long before"
        assert report.duplicates <= 2, str(report)
        found(report)


@pytest.mark.slow
def test_evicted_state_is_noticed(found):
    """A full Redis evicts the ledger: no process ends, nothing runs twice."""
    with volatile_scenario(maxmemory="12mb", extra_args=("--maxmemory-policy", "allkeys-random")) as scenario:
        settle(scenario)
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
        assert lost_state_was_said(scenario) >= 1
        found(report)


@pytest.mark.slow
def test_a_full_redis_keeps_its_leader(found):
    """Without memory nothing can be enqueued, but renewals pass, and the same leader continues afterwards."""
    with volatile_scenario({"lease_ttl": 2, "renew_interval": 0.5, "command_timeout": 0.9}) as scenario:
        settle(scenario)
        epoch = scenario.cluster.epoch()
        scenario.history.fault("full")
        scenario.redis.admin.config_set("maxmemory", 1)
        time.sleep(4.0)
        during = [m for m in scenario.history.messages() if m["t"] > scenario.history.faults()[-1]["t"] + 0.5]
        scenario.redis.admin.config_set("maxmemory", 0)
        assert not during
        go_on(scenario)
        assert scenario.cluster.epoch() == epoch
        found(judge(scenario))


@pytest.mark.slow
def test_a_server_that_turns_read_only_is_outlived(found):
    """A replica without its master takes no writes: there is no leader, no process exits, and nothing is lost."""
    with volatile_scenario({"lease_ttl": 2, "renew_interval": 0.5, "command_timeout": 0.9}) as scenario:
        settle(scenario)
        scenario.history.fault("read-only")
        scenario.redis.admin.replicaof("127.0.0.1", 1)
        time.sleep(4.0)
        scenario.redis.admin.replicaof("NO", "ONE")
        scenario.history.fault("writable again")
        go_on(scenario)
        found(judge(scenario))


@pytest.mark.slow
def test_a_server_that_is_loading_is_waited_for(found):
    """Redis answers LOADING for some seconds, which is treated as an outage."""
    with volatile_scenario(
        extra_args=("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    ) as scenario:
        settle(scenario)
        pipeline = scenario.redis.admin.pipeline()
        for number in range(4000):
            pipeline.set(f"junk:{number}", "x" * 100)
        pipeline.execute()
        restart_complete(scenario)
        go_on(scenario)
        found(judge(scenario))
