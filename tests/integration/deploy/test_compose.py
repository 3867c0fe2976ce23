"""docker-compose.yml brought up for real; its containers killed, paused, cut off, scaled and replaced.

What counts is what the worker ran: an entry is due each second, each instant has to run, and none twice.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.integration.deploy.stack import Stack, skip_without_docker
from tests.support.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Seconds; what the example leaves at its default.
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
        print(running.compose("logs", "--tail", "50"))  # pytest shows it with the failure
        raise
    finally:
        running.down()


@pytest.fixture
def whole(stack: Stack) -> Stack:
    """Three replicas again, whatever the test before left behind."""
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
        told = [(each["entry"], each["from"], each["until"], each["why"]) for each in skipped]
        # What Redis had been sent, and did not answer, when it was stopped: nobody knows whether it was taken.
        in_flight = [
            at
            for at in never
            for _, first, until, why in told
            if why == "state_loss" and datetime.fromisoformat(first) <= at < datetime.fromisoformat(until)
        ]
        lost = [at for at in never if at not in in_flight]
        figure(
            f"{what}; of {expected} instants so far {len(twice)} ran twice, {len(lost)} not at all, "
            f"{len(in_flight)} skipped since they were in flight when Redis was stopped"
        )
        assert (twice, lost) == ([], []), told
        # As long as a command may wait for its answer.
        assert len(in_flight) <= 4, told

    return check


def test_all_replicas_are_healthy_and_one_leads(whole, counted):
    """`up --wait` came back, so that the healthchecks pass; and one replica only answers 200 at /leader."""
    view = whole.cli("status")

    assert len(view["members"]) == 3
    assert [member["role"] for member in view["members"]].count("leader") == 1
    asked = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/leader').status)"
    leader, _ = whole.leader()
    assert whole.docker("exec", leader, "python", "-c", asked).strip() == "200"
    counted("start")


def test_a_container_can_write_nowhere_and_has_no_rights(whole):
    container = whole.containers()[0]
    script = "touch /app/x 2>/dev/null && echo written; id -u; grep CapEff /proc/self/status"
    script += "; python -m pip --version; python -m ensurepip --version; which gcc"

    told = whole.docker("exec", container, "sh", "-c", f"{script}; true").split()

    assert told == ["10001", "CapEff:", "0000000000000000"]


def test_the_leaders_container_is_killed(whole, counted):
    """The connection ends with the process: a standby leads long before the lease has run out."""
    epoch, (leader, _) = whole.epoch(), whole.leader()

    began = time.time()
    whole.docker("kill", leader)
    took = whole.acquired_after(epoch)["ms"] / 1000 - began

    assert took < LEASE_TTL / 2
    counted(f"docker kill: a new leader {took:.2f} s after the command was given")


def test_a_process_that_is_killed_is_started_again(whole, counted):
    """`restart: unless-stopped` brings it back, as a standby."""
    epoch, (leader, pid) = whole.epoch(), whole.leader()
    started = whole.state(leader)["StartedAt"]

    began = time.time()
    whole.docker("exec", leader, "sh", "-c", f"kill -9 {pid}")
    took = whole.acquired_after(epoch)["ms"] / 1000 - began

    wait_for(lambda: whole.state(leader)["StartedAt"] != started, timeout=30, what="the restart")
    wait_for(lambda: whole.state(leader)["Health"]["Status"] == "healthy", timeout=90, what="the health", interval=1)
    assert whole.leader()[0] != leader
    assert took < LEASE_TTL / 2
    counted(f"kill -9: a new leader {took:.2f} s after the command was given")


def test_the_leader_is_paused_past_its_lease(whole, counted):
    """It wakes up and finds another; it stands by, and its container has not ended."""
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


def test_the_leader_is_cut_off_the_network(whole, counted):
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
    wait_for(lambda: len(whole.cli("status")["members"]) == 3, timeout=40, what="it to be back", interval=1)
    assert whole.state(leader)["StartedAt"] == started
    assert took < LEASE_TTL * 2


def test_redis_is_away_for_20_seconds(whole, counted):
    """No replica ends; what fell due runs late."""
    before = {each: whole.state(each)["StartedAt"] for each in whole.containers()}

    whole.compose("stop", "redis")
    time.sleep(20)
    began = time.time()
    whole.compose("start", "redis")
    caught_up = whole.wait_until_caught_up(within=120)

    counted(f"Redis away for 20 s: what was due at {caught_up:%H:%M:%S} had run {time.time() - began:.1f} s after")
    assert {each: whole.state(each)["StartedAt"] for each in whole.containers()} == before


def test_five_replicas_and_three_again(whole, counted):
    before = set(whole.containers())
    whole.up(scale=5)
    assert before < set(whole.containers())
    assert len(whole.cli("status")["members"]) == 5
    whole.up(scale=3)

    counted("scaled to 5 and back to 3")


def test_all_are_replaced_at_once(whole, counted):
    """What plain `up -d` does after a change: nobody leads for a while, and what fell due runs late."""
    before, epoch = set(whole.containers()), whole.epoch()

    whole.schedule = "first"
    whole.up()
    if before == set(whole.containers()):
        whole.compose("up", "-d", "--no-build", "--wait", "--force-recreate", "--no-deps", "beat")

    assert not before & set(whole.containers())
    assert whole.acquired_after(epoch)
    counted("all replicas replaced at once")


def test_a_rolling_deploy_with_a_changed_schedule(whole, counted):
    """By the script that we ship: each change of leader is a handover."""
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
    # Far below what a start takes, and the lease: a standby was there each time.
    assert max(gaps) < 3000
    counted(f"rolling deploy with a changed schedule: {len(gaps)} handovers, {max(gaps)} ms at most without a leader")


def test_a_release_that_does_not_start_replaces_nobody(whole, counted):
    """Its one replica is taken away again; the others never stopped."""
    before, epoch = set(whole.containers()), whole.epoch()

    whole.schedule = "there-is-none"
    with pytest.raises(AssertionError, match="removed it, the old replicas go on"):
        whole.roll()
    whole.schedule = "second"

    assert set(whole.compose("ps", "--all", "-q", "beat").split()) == before
    assert whole.epoch() == epoch
    counted("a release that does not start")
