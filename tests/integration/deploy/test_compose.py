"""Services of docker-compose.yml with containers killed, paused, disconnected, scaled and replaced.

An entry is due each second. The worker has to run each instant exactly once.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.integration.deploy.stack import Stack, skip_without_docker
from tests.support.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Seconds: the default, which the example uses.
LEASE_TTL = 10.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    skip_without_docker()
    running = Stack(tmp_path_factory.mktemp("compose"))
    try:
        running.compose("build", "beat", timeout=800)
        running.up()
        wait_for(running.runs, timeout=60, what="the first run")
        yield running
    except BaseException:
        print(running.compose("logs", "--tail", "50"))  # shown with the failure
        raise
    finally:
        running.down()


@pytest.fixture
def whole(stack: Stack) -> Stack:
    """The stack with three running replicas."""
    if len(stack.containers()) != 3 or any(not stack.state(each)["Running"] for each in stack.containers()):
        stack.up()
    with contextlib.suppress(AssertionError):
        stack.wait_until_caught_up()
    return stack


@pytest.fixture
def counted(whole: Stack, figure: Callable[[str], None]) -> Callable[[str], None]:
    def check(what: str) -> None:
        expected, twice, never = whole.count()
        skipped = [each for each in whole.history() if each.get("verdict") == "skipped" and each["why"] != "coalesced"]
        records = [(each["entry"], each["from"], each["until"], each["why"]) for each in skipped]
        # Commands without a reply when Redis was stopped: their outcome is unknown.
        in_flight = [
            at
            for at in never
            for _, first, until, why in records
            if why == "state_loss" and datetime.fromisoformat(first) <= at < datetime.fromisoformat(until)
        ]
        lost = [at for at in never if at not in in_flight]
        figure(
            f"{what}; of {expected} instants so far {len(twice)} ran twice, {len(lost)} did not run, "
            f"{len(in_flight)} were skipped because they were in flight when Redis was stopped"
        )
        assert (twice, lost) == ([], []), records
        # The number that falls due during the timeout of a command.
        assert len(in_flight) <= 4, records

    return check


def test_all_replicas_are_healthy_and_one_leads(whole, counted):
    """`up --wait` has returned, so the healthchecks pass. One replica answers 200 at /leader."""
    view = whole.cli("status")
    assert len(view["members"]) == 3
    assert [member["role"] for member in view["members"]].count("leader") == 1
    asked = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/leader').status)"
    leader, _ = whole.leader()
    assert whole.docker("exec", leader, "python", "-c", asked).strip() == "200"
    counted("start")


def test_container_is_read_only_and_unprivileged(whole):
    container = whole.containers()[0]
    script = "touch /app/x 2>/dev/null && echo written; id -u; grep CapEff /proc/self/status"
    script += "; python -m pip --version; python -m ensurepip --version; which gcc"
    output = whole.docker("exec", container, "sh", "-c", f"{script}; true").split()
    assert output == ["10001", "CapEff:", "0000000000000000"]


def test_killed_container_of_leader_is_replaced_before_lease_expires(whole, counted):
    """The connection ends with the process, so that a standby notices immediately."""
    epoch, (leader, _) = whole.epoch(), whole.leader()
    began = time.time()
    whole.docker("kill", leader)
    took = whole.acquired_after(epoch)["ms"] / 1000 - began
    assert took < LEASE_TTL / 2
    counted(f"docker kill: a new leader {took:.2f} s after the command")


def test_killed_process_is_restarted_as_standby(whole, counted):
    """By `restart: unless-stopped`."""
    epoch, (leader, pid) = whole.epoch(), whole.leader()
    started = whole.state(leader)["StartedAt"]
    began = time.time()
    whole.docker("exec", leader, "sh", "-c", f"kill -9 {pid}")
    took = whole.acquired_after(epoch)["ms"] / 1000 - began
    wait_for(lambda: whole.state(leader)["StartedAt"] != started, timeout=30, what="the restart")
    wait_for(lambda: whole.state(leader)["Health"]["Status"] == "healthy", timeout=90, what="the health", interval=1)
    assert whole.leader()[0] != leader
    assert took < LEASE_TTL / 2
    counted(f"kill -9: a new leader {took:.2f} s after the command")


def test_leader_paused_past_its_lease_becomes_standby(whole, counted):
    epoch, (leader, _) = whole.epoch(), whole.leader()
    started = whole.state(leader)["StartedAt"]
    began = time.time()
    whole.docker("pause", leader)
    try:
        took = whole.acquired_after(epoch)["ms"] / 1000 - began
        time.sleep(3)
    finally:
        whole.docker("unpause", leader)
    counted(f"docker pause: a new leader after {took:.2f} s")
    assert whole.leader()[0] != leader
    assert whole.state(leader)["StartedAt"] == started
    assert LEASE_TTL / 2 < took < LEASE_TTL * 2


def test_leader_cut_off_the_network_is_replaced_and_returns(whole, counted):
    epoch, (leader, _) = whole.epoch(), whole.leader()
    started, network = whole.state(leader)["StartedAt"], f"{whole.project}_default"
    began = time.time()
    whole.docker("network", "disconnect", network, leader)
    try:
        took = whole.acquired_after(epoch)["ms"] / 1000 - began
        time.sleep(3)
    finally:
        whole.docker("network", "connect", "--alias", "beat", network, leader)
    counted(f"network disconnect: a new leader after {took:.2f} s")
    wait_for(lambda: len(whole.cli("status")["members"]) == 3, timeout=40, what="the third member", interval=1)
    assert whole.state(leader)["StartedAt"] == started
    assert took < LEASE_TTL * 2


def test_outage_of_redis_delays_tasks_and_ends_no_replica(whole, counted):
    before = {each: whole.state(each)["StartedAt"] for each in whole.containers()}
    whole.compose("stop", "redis")
    time.sleep(20)
    began = time.time()
    whole.compose("start", "redis")
    caught_up = whole.wait_until_caught_up(within=120)
    counted(f"Redis stopped for 20 s: tasks due at {caught_up:%H:%M:%S} had run {time.time() - began:.1f} s later")
    assert {each: whole.state(each)["StartedAt"] for each in whole.containers()} == before


def test_scaling_to_five_and_back_to_three_keeps_containers(whole, counted):
    before = set(whole.containers())
    whole.up(scale=5)
    assert before < set(whole.containers())
    assert len(whole.cli("status")["members"]) == 5
    whole.up(scale=3)
    counted("scaled to 5 and back to 3")


def test_replacing_all_replicas_at_once_delays_tasks(whole, counted):
    """As `up -d` does after a change. There is no leader for a while."""
    before, epoch = set(whole.containers()), whole.epoch()
    whole.schedule = "first"
    whole.up()
    if before == set(whole.containers()):
        whole.compose("up", "-d", "--no-build", "--wait", "--force-recreate", "--no-deps", "beat")
    assert not before & set(whole.containers())
    assert whole.acquired_after(epoch)
    counted("all replicas replaced at once")


def test_rolling_update_with_changed_schedule_hands_over(whole, counted):
    """With deploy/rolling-update, each change of leader is a handover."""
    before, epoch = set(whole.containers()), whole.epoch()
    left_behind = f"{whole.project}-run"
    whole.compose("run", "--no-deps", "--name", left_behind, "beat", "true")
    whole.schedule = "second"
    whole.roll()
    whole.docker("rm", left_behind)
    assert len(whole.containers()) == 3
    assert not before & set(whole.containers())
    wait_for(lambda: any(run["entry"] == "every-two-seconds" for run in whole.runs()), 30, "the new entry")
    terms = [each for each in whole.history() if each["kind"] == "term" and each["epoch"] >= epoch]
    gaps = [
        after["ms"] - this["ms"]
        for this, after in itertools.pairwise(terms)
        if (this["event"], after["event"]) == ("released", "acquired")
    ]
    assert gaps
    # Far below the lease and the time of a start, because there is always a standby.
    assert max(gaps) < 3000
    counted(f"rolling deploy with a changed schedule: {len(gaps)} handovers, {max(gaps)} ms at most without a leader")


def test_release_that_does_not_start_replaces_no_replica(whole, counted):
    """Its one replica is removed; the others never stop."""
    before, epoch = set(whole.containers()), whole.epoch()
    whole.schedule = "there-is-none"
    with pytest.raises(AssertionError, match="removed it, the old replicas go on"):
        whole.roll()
    whole.schedule = "second"
    assert set(whole.compose("ps", "--all", "-q", "beat").split()) == before
    assert whole.epoch() == epoch
    counted("a release that does not start")
