"""Wall clocks step or drift (of a replica, the server or all), and daylight saving time begins and ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat.election.cluster_clock import AGREEMENT
from tests.faults.checker import instant
from tests.faults.clock import SteppedClock, drift_together
from tests.faults.history import boottime
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RedisServer, need

HOUR = 3600.0
TTL = 3.0
SETTINGS = {"lease_ttl": TTL, "renew_interval": 0.5, "command_timeout": 1}
SPEC = {"fast": {"every": 0.2}, "slow": {"every": 1.0}}


@contextmanager
def clocked_scenario(
    *, at: datetime | None = None, redis_ahead: float = 0.0, **options: Any
) -> Iterator[tuple[ClusterScenario, SteppedClock]]:
    """Start a scenario and yield it with the clock of its Redis.

    Each replica has its own clock with the right time. With `at`, all share one clock, which starts at that time.
    """
    clock = need(SteppedClock)
    clock.offset = redis_ahead if at is None else (at - datetime.now(UTC)).total_seconds()
    clocks: dict[str, Any] = {"clocks": True} if at is None else {"env": clock.env}
    options = {"settings": SETTINGS, "spec": SPEC, **clocks, **options}
    with (
        need(lambda: RedisServer(env=clock.env)) as redis,
        ClusterScenario(redis=redis, proxied=False, **options) as scenario,
    ):
        yield scenario, clock


def more(scenario: ClusterScenario, seconds: float = 2.0) -> None:
    """Wait for the messages of some seconds."""
    scenario.more(int(seconds / 0.2), "fast")
    scenario.more(1, "slow")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
@pytest.mark.parametrize("who", ["leader", "standby", "redis"])
def test_stepped_clock_changes_no_leader_and_no_schedule(seconds: float, who: str, found):
    """One of the clocks steps by an hour. The leader continues on time, and so does the next one."""
    with clocked_scenario() as (scenario, server_clock):
        leader = scenario.begin()
        more(scenario)
        epoch = scenario.cluster.epoch()
        victim = leader if who == "leader" else next(one for one in scenario.cluster if one is not leader)
        if who == "redis":
            scenario.history.fault("clock_jump", seconds=seconds)
            server_clock.jump(seconds)
        else:
            scenario.nemesis.clock_jump(seconds, victim)
        more(scenario, 4)
        assert scenario.cluster.epoch() == epoch, scenario.cluster.logs()
        # The next leader is the replica whose clock has stepped, or one that has seen it.
        for one in scenario.cluster:
            if one is leader or (who == "standby" and one is not victim):
                one.kill()
        scenario.cluster.wait_for_leader(other_than=leader)
        more(scenario)
        report = scenario.clean_report(scenario.intervals)
        assert report.silence.longest < TTL * 2 + 5
        ahead = max(
            abs(instant(m["scheduled_at"]).timestamp() - time.time()) for m in scenario.history.messages()[-10:]
        )
        assert ahead < 60, "scheduling has followed a wrong clock"
        found(report)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_new_leader_with_a_wrong_clock_is_outvoted(seconds: float, found):
    """It takes over from a leader with the right time. The server's clock and the old leader's offset outvote it."""
    with clocked_scenario(replicas=2) as (scenario, _):
        leader = scenario.begin()
        (other,) = scenario.cluster.standbys()
        other.kill()
        scenario.clocks[scenario.cluster.replicas.index(other)].jump(seconds)
        other.start()
        other.wait_for_log_of_start()
        other.wait_for_log("action=leader_seen")
        more(scenario)
        scenario.nemesis.kill_leader()
        scenario.cluster.wait_for_leader(other_than=leader)
        more(scenario)
        found(scenario.clean_report(scenario.intervals))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_step_of_all_clocks_is_followed(seconds: float, found):
    """A step ahead makes an hour overdue. After a step back, no occurrence runs twice."""
    with clocked_scenario(at=datetime.now(UTC)) as (scenario, clock):
        scenario.begin()
        more(scenario)
        scenario.history.fault("clock_jump", seconds=seconds)
        clock.jump(seconds)
        if seconds > 0:
            more(scenario, 6)
        else:
            time.sleep(6)
        scenario.cluster.assert_all_alive()
        found(scenario.clean_report(scenario.intervals if seconds > 0 else []))


@pytest.mark.slow
def test_term_starts_immediately_although_the_clock_of_redis_is_behind(found):
    """The first leader, its successor and one after a release enqueue long before their first renewal, after 10 s."""
    behind = 20.0
    with clocked_scenario(replicas=2, settings={"lease_ttl": 40}, redis_ahead=-behind) as (scenario, _):
        leader = scenario.begin()
        began = int(scenario.cluster.lease()["since_ms"]) / 1000 + behind
        assert scenario.history.messages()[0]["t"] + time.time() - boottime() - began < 8
        more(scenario)
        leader.kill()
        successor = scenario.cluster.wait_for_leader(other_than=leader)
        more(scenario)
        leader.start()
        leader.wait_for_log_of_start()
        successor.terminate()
        more(scenario)
        report = scenario.clean_report(scenario.intervals)
        assert report.silence.longest < 8
        found(report)


#: Rates of the drifting clocks of the leader, another replica and the server, and the number of replicas. A "machine"
#: drifts with all its clocks.
DRIFTS = {
    "leader ahead": ((0.5, 0.0, 0.0), 2),
    "leader behind": ((-0.5, 0.0, 0.0), 2),
    "standby": ((0.0, 0.5, 0.0), 2),
    "redis ahead": ((0.0, 0.0, 0.5), 2),
    "redis behind": ((0.0, 0.0, -0.5), 2),
    "both replicas": ((0.5, 0.3, 0.0), 2),
    "leader and redis apart": ((0.5, 0.0, -0.3), 2),
    "lone replica": ((0.5, 0.0), 1),
    "leader's machine": ((0.4, 0.0, 0.0), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("drift", DRIFTS)
def test_drifting_clock_moves_the_schedule_by_the_agreement_at_most(drift: str, found):
    """Clocks drift by seconds, as in minutes. Then the leader is killed, and its successor continues without a gap."""
    rates, replicas = DRIFTS[drift]
    env = {"CLOCK_OFFSET_BOOTTIME": "1"} if "machine" in drift else {}
    with clocked_scenario(replicas=replicas, replica_env=[env] * replicas) as (scenario, server_clock):
        leader = scenario.begin()
        others = [clock for one, clock in zip(scenario.cluster, scenario.clocks, strict=True) if one is not leader]
        own = scenario.clocks[scenario.cluster.replicas.index(leader)]
        began = len(scenario.history.messages())
        drift_together(list(zip([own, *others, server_clock], rates, strict=True)), 10)
        more(scenario)
        leader.kill()
        if replicas == 1:
            leader.start()
        scenario.cluster.wait_for_leader(other_than=None if replicas == 1 else leader)
        more(scenario)
        since_boot = time.time() - boottime()
        for message in scenario.history.messages()[began:]:
            early = instant(message["scheduled_at"]).timestamp() - (message["t"] + since_boot)
            assert early < AGREEMENT + 0.5, "scheduling has followed a wrong clock"
        report = scenario.clean_report(scenario.intervals)
        # A lone replica has to start again.
        assert report.silence.longest < TTL + (4 if replicas > 1 else 20)
        found(report)


DST = [
    pytest.param("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC), id="Berlin-gap"),
    # Celery skips the repeated hour; this is its end.
    pytest.param("America/New_York", datetime(2026, 11, 1, 7, tzinfo=UTC), id="New_York-overlap"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("zone", "transition"), DST)
def test_daylight_saving_in_a_whole_cluster(zone: str, transition: datetime, found):
    """Every clock starts some seconds before the change. The leader is killed in it; each minute runs once."""
    spec = {"fast": {"every": 0.2}, "minute": {"cron": "*"}, "two": {"cron": "0 2"}, "gap": {"cron": "30 2"}}
    with clocked_scenario(at=transition - timedelta(seconds=25), spec=spec, config={"timezone": zone}) as (scenario, _):
        scenario.begin()
        scenario.history.wait_for_messages(1, 70, "minute")
        scenario.nemesis.kill_leader(0.0)
        scenario.more(20, "fast")
        report = scenario.clean_report(scenario.intervals)
        assert [instant(m["scheduled_at"]) for m in scenario.history.messages("minute")] == [transition]
        assert not scenario.history.messages("gap")
        found(report)
