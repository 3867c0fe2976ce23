"""The leader is killed after a dispatch, before its rows are written: no task is enqueued twice or lost."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.cluster import BeatCluster
from tests.integration.django.beats import STOCK, beats, kill_leader
from tests.integration.django.conftest import Site, use
from tests.integration.django.rows import at, cron, every, next_minute, row, sleep_until, soon, wait_until_disabled
from tests.support.servers import RedisServer, wait_for

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


@pytest.fixture
def sites(site: Site, postgres_site: Site, redis_server: RedisServer) -> list[Site]:
    """A site on each database, each with a separate Redis, for tests that wait for minutes on both at the same time."""
    return [Site(site.database, redis_server), postgres_site]


def create(sites: list[Site], make: Callable[[], object]) -> None:
    """Create rows in each database."""
    for site in sites:
        use(site.database)
        make()


@pytest.mark.timeout(400)
def test_three_kills_in_three_minutes_lose_and_repeat_nothing(sites):
    """SIGKILL 0.1, 0.5 and 8 s after a dispatch of all entries; each killed replica restarts."""
    create(sites, lambda: (row("minutely", crontab=cron()), row("interval", interval=every(10))))
    with ExitStack() as stack, ThreadPoolExecutor(len(sites)) as pool:
        clusters = [stack.enter_context(beats(site, replicas=3)) for site in sites]
        for cluster in clusters:
            cluster.wait_for_leader()
        minute = next_minute(at_least=12)
        for number, delay in enumerate((0.1, 0.5, 8.0)):
            one_off, clocked = f"one off {number}", f"clocked {number}"

            def add() -> None:
                row(one_off, crontab=cron(), one_off=True)  # noqa: B023 -- called in this pass
                row(clocked, clocked=at(minute), one_off=True)  # noqa: B023 -- called in this pass

            def strike(site: Site, cluster: BeatCluster) -> None:
                wait_for(lambda: clocked in site.names(), 20, "the minute's messages", 0.002)  # noqa: B023 -- as above
                time.sleep(delay)  # noqa: B023 -- as above
                killed = kill_leader(cluster)
                sleep_until(minute + timedelta(seconds=20))  # noqa: B023 -- as above
                killed.start()

            create(sites, add)
            sleep_until(minute)
            list(pool.map(strike, sites, clusters))
            minute += MINUTE
        sleep_until(minute + timedelta(seconds=5))
        for cluster in clusters:
            cluster.assert_all_alive()
    for site in sites:
        counted = Counter(site.names())
        once = {name: count for name, count in counted.items() if name not in {"minutely", "interval"}}
        assert once == {f"{kind} {number}": 1 for kind in ("one off", "clocked") for number in range(3)}
        site.assert_each_once("minutely", 60)
        site.assert_each_once("interval", 10)
        assert counted["minutely"] >= 4


@pytest.mark.timeout(240)
def test_stock_beat_repeats_tasks_in_the_same_case(sites):
    """The test above can fail: stock beat sends the tasks again after a kill and a restart."""
    create(sites, lambda: (row("minutely", crontab=cron()), row("interval", interval=every(10))))
    with ExitStack() as stack:
        clusters = [stack.enter_context(beats(site, replicas=1, scheduler=STOCK)) for site in sites]
        for site in sites:
            # The first send writes the rows immediately; later ones are written up to 180 s later.
            site.wait_for(within=60)
        minute = next_minute(at_least=10)
        create(sites, lambda: row("clocked", clocked=at(minute), one_off=True))
        sleep_until(minute)
        for site in sites:
            site.wait_for("minutely", "clocked", within=20)
        before = [Counter(site.names()) for site in sites]
        for cluster in clusters:
            cluster[0].restart()

        def repeated() -> bool:
            return all(Counter(s.names())["clocked"] > b["clocked"] for s, b in zip(sites, before, strict=True))

        wait_for(repeated, 40, "the second messages", 0.1)
        time.sleep(2)
        assert datetime.now(UTC) < minute + MINUTE, "too slow: the next minute has begun"
    for site, first in zip(sites, before, strict=True):
        counted = Counter(site.names())
        assert counted["minutely"] == first["minutely"] + 1
        assert counted["clocked"] == 2
