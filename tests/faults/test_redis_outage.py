"""Redis goes away and comes back with its data: nobody exits, dispatch resumes by itself, nothing is sent twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.faults.checker import Interval, instant
from tests.faults.stage import Stage
from tests.servers import wait_for

OUTAGES = [pytest.param(2.0, id="2s"), pytest.param(15.0, id="15s", marks=pytest.mark.slow)]


@pytest.mark.parametrize("seconds", OUTAGES)
def test_replicas_outlive_an_outage_of_redis(seconds: float, figure: Callable[[str], None]) -> None:
    """What was due during the outage runs once after it; nothing is missed without a verdict."""
    once_every = seconds * 0.8
    spec = {"fast": {"every": 0.2}, "within": {"every": once_every}}
    with Stage(spec=spec, proxied=False) as stage:
        stage.begin()
        stage.history.wait_for_messages(1, once_every + 10, entry="within")
        down_at = datetime.now(UTC)
        stage.nemesis.redis_stop(seconds)
        up_at = datetime.now(UTC)
        up = stage.history.faults("redis_stop")[-1]["t"]
        back = wait_for(
            lambda: [m for m in stage.history.messages("fast") if m["t"] > up],
            30,
            "a message after the outage",
        )[0]
        stage.history.wait_for_messages(len(stage.history.messages("fast")) + 10, entry="fast")
        stage.history.wait_for_messages(len(stage.history.messages("within")) + 1, once_every + 10, entry="within")
        time.sleep(0.3)
        stage.cluster.assert_all_alive()
        assert [replica.starts for replica in stage.cluster] == [1, 1, 1]
        report = stage.report([Interval("fast", 0.2), Interval("within", once_every)])
        assert report.ok, str(report)
        due_meanwhile = [m for m in stage.history.messages("within") if down_at < instant(m["scheduled_at"]) <= up_at]
        assert len(due_meanwhile) == 1
        assert due_meanwhile[0]["t"] > up
        figure(f"Redis away for {seconds:g} s: dispatch resumed {back['t'] - up:.2f} s after it was back; 0 duplicates")
