"""An occurrence runs just before Redis fails, and is missing in the restored data.

No remaining replica knows of it, and it does not run again.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.faults.checker import Instants
from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario, due_times
from tests.support.servers import RedisServer, need, wait_for

ENQUEUES = containing(b"EVALSHA", b'"verdict":"enqueued"')

#: Standbys poll rarely, so that their knowledge is some seconds old.
SETTINGS = {"lease_ttl": 5, "poll_interval": 2}


def lose_writes_from_now(server: RedisServer) -> Callable[[], None]:
    """Return a function for the killed server that takes later writes off its disk."""
    if not server.appendonly:
        server.admin.save()
        return lambda: None
    (path,) = server.directory.glob("appendonlydir/*.incr.aof")
    size = path.stat().st_size
    return lambda: os.truncate(path, size)


@pytest.mark.slow
@pytest.mark.parametrize("appendonly", [False, True], ids=["snapshot", "append-only file cut short"])
@pytest.mark.parametrize("survivor", ["standby", "leader"])
def test_last_run_missing_in_the_data_does_not_run_again(appendonly: bool, survivor: str, found):
    """Its occurrence has one message and is recorded as not to be sent again. Then dispatch continues."""
    for due_at in due_times(8.0, 30.0):
        spec = {"last": {"every": 3600, "first": due_at}, "slow": {"every": 2}}
        with (
            need(lambda: RedisServer(appendonly=appendonly)) as server,
            ClusterScenario(
                redis=server, spec=spec, settings=SETTINGS, replicas=2 if survivor == "standby" else 1
            ) as scenario,
        ):
            scenario.cluster.wait_until_up()
            leader = scenario.cluster.wait_for_leader()
            wait_for(lambda: {"last", "slow"} <= scenario.cluster.ledger().keys(), 20, "the entries' rows")
            time.sleep(2.5)
            if time.time() > due_at - 1:
                continue
            time.sleep(due_at - time.time() - 0.3)
            if survivor == "leader":
                # It never receives the result of its batch.
                scenario.nemesis.lease_proxy(leader).cut_reply_after(ENQUEUES)
            lose_writes = lose_writes_from_now(server)
            assert scenario.history.messages("last") == []
            scenario.history.wait_for_messages(1, 20, "last")
            if survivor == "standby":
                leader.kill()
            server.kill()
            lose_writes()
            time.sleep(1.0)
            server.start()
            scenario.nemesis.lease_proxy(leader).heal()
            scenario.more(4, "slow", 60)
            report = scenario.clean_report([Instants("last", (datetime.fromtimestamp(due_at, UTC),))])
            row = scenario.cluster.ledger()["last"]
            # Armed if the leader has received the result nevertheless.
            assert (row["verdict"], row.get("why")) in {("skipped", "state_loss"), ("armed", None)}
            found(report)
            return
