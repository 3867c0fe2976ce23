"""A stock worker consumes what ha_beat enqueues."""

import json
import re
import signal
import sys
from pathlib import Path

from tests.faults.cluster import base_environment
from tests.integration.dispatch.conftest import MakeComparison
from tests.support.servers import RedisServer, ServerProcess, wait_for

ENTRIES = {
    "plain": {"task": "tick"},
    "arguments": {"task": "tick", "args": (1, "zwei"), "kwargs": {"three": [3]}},
    "priority": {"task": "tick", "options": {"priority": 9}},
    "compressed": {"task": "tick", "options": {"compression": "zlib"}},
    "headers": {"task": "tick", "options": {"headers": {"tenant": "blue"}}},
    "expires": {"task": "tick", "options": {"expires": 3600}},
    "countdown": {"task": "tick", "options": {"countdown": 0.2}},
    "expired": {"task": "tick", "options": {"expires": -60}},
}


def test_stock_worker_runs_each_message_once(
    make_comparison: MakeComparison, shared_redis: RedisServer, tmp_path: Path
):
    """With any option. A worker drops an expired message, as it does for stock beat."""
    comparison = make_comparison()
    comparison.run_scheduler(ENTRIES)
    rows = comparison.ledger()
    assert {rows[name]["verdict"] for name in ENTRIES} == {"enqueued"}
    worker = ServerProcess(
        [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "worker", "-P", "solo", "-l", "INFO"],
        tmp_path / "worker.log",
        env=base_environment({"BROKER_URL": shared_redis.url}),
    )
    try:
        wanted = {rows[name]["id"] for name in ENTRIES if name != "expired"}
        wait_for(lambda: wanted <= set(succeeded(worker)), 40, "every task to succeed")
        log = worker.log_text()
        assert sorted(succeeded(worker)) == sorted(wanted)
        assert f"Discarding revoked task: tick[{rows['expired']['id']}]" in log or "expired" in log
        assert "Traceback" not in log, log
    finally:
        worker.stop(number=signal.SIGTERM)
    left = {key for key in shared_redis.admin.keys("*") if shared_redis.admin.type(key) == "list"}
    assert left == set(), json.dumps(sorted(left))


def succeeded(worker: ServerProcess) -> list[str]:
    return re.findall(r"Task tick\[([0-9a-f-]+)\] succeeded", worker.log_text())
