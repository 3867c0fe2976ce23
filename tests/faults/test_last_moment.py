"""An occurrence runs just before Redis fails and is missing in the restored data. No remaining replica knows of it,
and it does not run again.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.checker import Instants
from tests.faults.proxy import containing
from tests.faults.scenario import ClusterScenario
from tests.support.servers import RedisServer, need, wait_for

#: Seconds from the start of the replicas until the occurrence; the second is for slow machines.
LEAD_TIMES = (8.0, 30.0)

ENQUEUES = containing(b"EVALSHA", b'"verdict":"enqueued"')

#: Standbys poll rarely, so that their knowledge is some seconds old.
SETTINGS = {"lease_ttl": 5, "poll_interval": 2}


class Snapshot:
    """Snapshot of the server's disk as of now, which lacks later writes."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._size = 0
        if server.appendonly:
            self._size = self._file().stat().st_size
        else:
            server.admin.save()

    def _file(self) -> Path:
        (path,) = self._server.directory.glob("appendonlydir/*.incr.aof")
        return path

    def bring_about(self) -> None:
        """Simulate a machine that fails before the end of the file has reached the disk."""
        if self._server.appendonly:
            with self._file().open("r+b") as file:
                file.truncate(self._size)


@pytest.mark.slow
@pytest.mark.parametrize("appendonly", [False, True], ids=["snapshot", "append-only file cut short"])
@pytest.mark.parametrize("survivor", ["standby", "leader"])
def test_what_ran_last_does_not_run_again(appendonly: bool, survivor: str, found):
    """Its occurrence has one message and is recorded as not to be sent again. Then dispatch continues."""
    for lead_time in LEAD_TIMES:
        due_at = time.time() + lead_time
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
            snapshot = Snapshot(server)
            assert scenario.history.messages("last") == []
            scenario.history.wait_for_messages(1, 20, "last")
            if survivor == "standby":
                leader.kill()
            server.kill()
            snapshot.bring_about()
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
    pytest.fail(f"the replicas were not up after {LEAD_TIMES[-1] - 1:g} s")
