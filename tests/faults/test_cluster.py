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
