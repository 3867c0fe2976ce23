"""Test of the harness with stock beat: three of them enqueue everything three times, and the checker finds it."""

import pytest

from tests.faults.checker import StockTask, check
from tests.faults.cluster import STOCK_SCHEDULER, BeatCluster
from tests.faults.history import History, RedisQueueConsumer
from tests.support.servers import RedisServer


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "verdict"), [(1, "once"), (3, "duplicates")])
def test_three_stock_beats_duplicate_and_one_does_not(shared_redis: RedisServer, replicas: int, verdict: str):
    history = History()
    with (
        BeatCluster(
            shared_redis.url, spec={"half": {"every": 0.5}}, replicas=replicas, scheduler=STOCK_SCHEDULER
        ) as cluster,
        RedisQueueConsumer(history, shared_redis.url),
    ):
        cluster.wait_until_up()
        history.wait_for_messages(6 * replicas, timeout=30)
        cluster.assert_all_alive()
    report = check(history.events(), [StockTask("tick", 0.5)])
    assert report.messages >= 6 * replicas
    assert report.duplicates == (1 if verdict == "duplicates" else 0), str(report)


@pytest.mark.slow
def test_paused_killed_and_terminated_replicas_differ(shared_redis: RedisServer):
    history = History()
    with BeatCluster(shared_redis.url, spec={"fast": {"every": 0.1}}, replicas=1, scheduler=STOCK_SCHEDULER) as cluster:
        replica = cluster[0]
        with RedisQueueConsumer(history, shared_redis.url):
            history.wait_for_messages(3, timeout=30)
            replica.pause()
            assert replica.alive
            assert replica.paused
            replica.resume()
            history.wait_for_more(3)
            assert replica.kill() == -9
            assert replica.exit_code == -9
            replica.restart()
            history.wait_for_more(3)
            assert replica.terminate() == 0
        assert replica.starts == 2
