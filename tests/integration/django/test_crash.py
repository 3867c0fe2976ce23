"""The leader is killed after a dispatch, before its rows are written: no task is enqueued twice or lost."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.django.beats import STOCK, beats, kill_leader
from tests.integration.django.rows import at, cron, every, next_minute, row, sleep_until, soon, wait_until_disabled
from tests.support.servers import wait_for

pytestmark = pytest.mark.slow

MINUTE = timedelta(minutes=1)


def test_one_off_and_clocked_rows_run_once_if_the_leader_dies(any_site):
    row("interval", interval=every(1))
    with beats(any_site) as cluster:
        any_site.wait_for()
        one_off = row("one off", interval=every(2), one_off=True)
        clocked = row("clocked", clocked=at(soon(2)), one_off=True)
        cluster.wait_for_leader()
        wait_for(lambda: {"one off", "clocked"} <= set(any_site.names()), 20, "both messages", 0.002)
        kill_leader(cluster)
        for task in (one_off, clocked):
            wait_until_disabled(task, 20)
        time.sleep(2.5)
    counted = Counter(any_site.names())
    assert (counted["one off"], counted["clocked"]) == (1, 1)
    any_site.assert_each_once("interval", 1)
    assert counted["interval"] >= 4


@pytest.mark.timeout(400)
def test_three_kills_in_three_minutes_lose_and_repeat_nothing(any_site):
    """SIGKILL 0.1, 0.5 and 8 s after a dispatch of all entries; each killed replica restarts."""
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
            killed = kill_leader(cluster)
            sleep_until(minute + timedelta(seconds=20))
            killed.start()
            minute += MINUTE
        sleep_until(minute + timedelta(seconds=5))
        cluster.assert_all_alive()
    counted = Counter(any_site.names())
    once = {name: count for name, count in counted.items() if name not in {"minutely", "interval"}}
    assert once == {f"{kind} {number}": 1 for kind in ("one off", "clocked") for number in range(3)}
    any_site.assert_each_once("minutely", 60)
    any_site.assert_each_once("interval", 10)
    assert counted["minutely"] >= 4


@pytest.mark.timeout(240)
def test_stock_beat_repeats_tasks_in_the_same_case(any_site):
    """This proves that the test above can fail: stock beat, killed and restarted, sends the tasks again."""
    row("minutely", crontab=cron())
    row("interval", interval=every(10))
    with beats(any_site, replicas=1, scheduler=STOCK) as cluster:
        # The first send writes the rows at once; later ones are written up to 180 s later.
        any_site.wait_for(within=60)
        minute = next_minute(at_least=10)
        row("clocked", clocked=at(minute), one_off=True)
        sleep_until(minute)
        any_site.wait_for("minutely", "clocked", within=20)
        before = Counter(any_site.names())
        cluster[0].kill()
        cluster[0].start()
        wait_for(lambda: Counter(any_site.names())["clocked"] > before["clocked"], 40, "the second message", 0.1)
        time.sleep(2)
        assert datetime.now(UTC) < minute + MINUTE, "too slow: the next minute has begun"
    counted = Counter(any_site.names())
    assert counted["minutely"] == before["minutely"] + 1
    assert counted["clocked"] == 2
