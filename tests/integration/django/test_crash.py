"""The leader is killed right after a dispatch, before its rows are written: nothing is enqueued again or lost."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from tests.integration.django.beats import STOCK, at, beats, cron, every, fresh, row, soon
from tests.integration.django.conftest import Site
from tests.support.servers import wait_for

MINUTE = timedelta(minutes=1)


def instants(site: Site, name: str) -> list[datetime]:
    """When each message of this task was due."""
    return [
        datetime.fromisoformat(headers["ha_beat"]["scheduled_at"])
        for headers in site.messages()
        if headers["periodic_task_name"] == name
    ]


def assert_each_once(found: list[datetime], step: timedelta) -> None:
    assert [b - a for a, b in pairwise(found)] == [step] * (len(found) - 1)


def next_minute(at_least: float) -> datetime:
    """The next full minute that is more than so many seconds away."""
    ahead = datetime.now(UTC) + timedelta(seconds=at_least)
    return ahead.replace(second=0, microsecond=0) + MINUTE


def sleep_until(instant: datetime) -> None:
    time.sleep(max((instant - datetime.now(UTC)).total_seconds(), 0))


@pytest.mark.slow
def test_what_runs_once_does_so_though_the_leader_dies_at_once(any_site):
    """One-off, clocked and interval rows; the leader is killed as soon as the last of them is enqueued."""
    row("interval", interval=every(1))
    with beats(any_site) as cluster:
        wait_for(any_site.names, 40, "the first message", 0.05)
        one_off = row("one off", interval=every(2), one_off=True)
        clocked = row("clocked", clocked=at(soon(2)), one_off=True)
        leader = cluster.wait_for_leader()
        wait_for(lambda: {"one off", "clocked"} <= set(any_site.names()), 20, "both messages", 0.002)
        leader.kill()
        cluster.wait_for_leader(other_than=leader)
        for task in (one_off, clocked):
            wait_for(lambda task=task: not fresh(task).enabled, 20, f"{task} to be disabled", 0.1)
        time.sleep(2.5)

    counted = Counter(any_site.names())
    assert (counted["one off"], counted["clocked"]) == (1, 1)
    assert_each_once(instants(any_site, "interval"), timedelta(seconds=1))
    assert counted["interval"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_kills_over_three_minutes(any_site):
    """SIGKILL 0.1, 0.5 and 8 s after a dispatch of everything at once, the killed one started again each time."""
    row("minutely", crontab=cron())
    row("interval", interval=every(10))
    with beats(any_site, replicas=3) as cluster:
        cluster.wait_for_leader()
        minute = next_minute(at_least=12)
        for number, delay in enumerate((0.1, 0.5, 8.0)):
            row(f"one off {number}", crontab=cron(), one_off=True)
            row(f"clocked {number}", clocked=at(minute), one_off=True)
            sleep_until(minute)
            wait_for(lambda n=number: f"clocked {n}" in any_site.names(), 20, "the minute's messages", 0.002)
            time.sleep(delay)
            killed = cluster.wait_for_leader()
            killed.kill()
            cluster.wait_for_leader(other_than=killed)
            sleep_until(minute + timedelta(seconds=20))
            killed.start()
            minute += MINUTE
        sleep_until(minute + timedelta(seconds=5))
        cluster.assert_all_alive()

    counted = Counter(any_site.names())
    once = {name: count for name, count in counted.items() if name not in {"minutely", "interval"}}
    assert once == {f"{kind} {number}": 1 for kind in ("one off", "clocked") for number in range(3)}
    assert_each_once(instants(any_site, "minutely"), MINUTE)
    assert_each_once(instants(any_site, "interval"), timedelta(seconds=10))
    assert counted["minutely"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_stock_enqueues_again_in_the_same_case(any_site):
    """So the test above can see it: stock beat, killed and started again, sends the minute's tasks twice."""
    row("minutely", crontab=cron())
    row("interval", interval=every(10))
    with beats(any_site, replicas=1, scheduler=STOCK) as cluster:
        # Its first send writes the rows at once; the ones after it up to 180 s later.
        wait_for(any_site.names, 60, "the first message", 0.1)
        minute = next_minute(at_least=10)
        row("clocked", clocked=at(minute), one_off=True)
        sleep_until(minute)
        wait_for(lambda: {"minutely", "clocked"} <= set(any_site.names()), 20, "the minute's messages", 0.01)
        before = Counter(any_site.names())
        cluster[0].kill()
        cluster[0].start()
        wait_for(lambda: Counter(any_site.names())["clocked"] > before["clocked"], 40, "the second message", 0.1)
        time.sleep(2)
        assert datetime.now(UTC) < minute + MINUTE, "too slow to tell: the next minute has begun"

    counted = Counter(any_site.names())
    assert counted["minutely"] == before["minutely"] + 1
    assert counted["clocked"] == 2
