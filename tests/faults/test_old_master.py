"""Failover whose old master stays up, partitioned together with a replica that leads there.

The old master accepts writes until `min-replicas-to-write` stops it. These are not enqueued again on the new master.
"""

import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from tests.faults.cluster import BeatCluster
from tests.faults.history import queued_instants
from tests.faults.proxy import TcpProxy
from tests.faults.scenario import due_times
from tests.support.servers import RedisServer, need, wait_for

TTL = 3.0
MAX_LAG = 5
STRICT = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", str(MAX_LAG))

#: Seconds from the start until the failover (more for a slow machine), and from it until the occurrence that the old
#: side enqueues.
LEAD_TIMES, AFTER_CUT = (9.0, 30.0), 4.0


def follower(of: tuple[str, int]) -> RedisServer:
    host, port = of
    made = need(lambda: RedisServer(appendonly=True, extra_args=(*STRICT, "--replicaof", f"{host} {port}")))
    wait_for(lambda: _replication(made)["master_link_status"] == "up", 20, "a replica")
    return made


def _replication(server: RedisServer) -> dict[str, Any]:
    return server.admin.info("replication")


@pytest.mark.slow
@pytest.mark.parametrize("who", ["the standby", "the leader"])
def test_writes_of_an_old_master_are_not_enqueued_again(who: str, found):
    """One of two beats finds the new master; the other leads on the old side, where an occurrence is due."""
    for failover_at in due_times(*LEAD_TIMES):
        if report := old_side_writes_on(who, failover_at):
            found(report)
            return


def old_side_writes_on(who: str, failover_at: float) -> str | None:
    """Return the report of one run; None if the replicas were not up in time for the failover."""
    with ExitStack() as stack:
        old = stack.enter_context(need(lambda: RedisServer(appendonly=True, extra_args=STRICT)))
        link = stack.enter_context(TcpProxy(old.address))
        new = stack.enter_context(follower(link.address))
        stack.enter_context(follower(new.address))  # so that the new master accepts writes
        wait_for(lambda: _replication(old)["min_slaves_good_slaves"] == 1, 20, "the old master to know of it")
        ways = [stack.enter_context(TcpProxy(old.address)) for _ in range(2)]
        spec = {"fast": {"every": 0.5}, "within": {"every": 3600, "first": failover_at + AFTER_CUT}}
        urls = [way.url(old.url) for way in ways]
        settings = {"lease_ttl": TTL}
        cluster = stack.enter_context(BeatCluster(urls, spec=spec, replicas=2, settings=settings, admin_url=old.url))
        cluster.wait_until_up()
        leader = cluster.wait_for_leader()
        (standby,) = cluster.standbys()
        standby.wait_for_log("action=leader_seen")
        moved, stays = (standby, leader) if who == "the standby" else (leader, standby)
        way = ways[cluster.replicas.index(moved)]

        if time.time() > failover_at:
            return None
        time.sleep(failover_at - time.time())
        link.blackhole()
        way.refuse()
        way.upstream = new.address
        new.admin.replicaof("NO", "ONE")
        way.accept()

        wait_for(lambda: queued_instants(old.admin, "within"), 20, "the occurrence on the old side")
        assert cluster.leader() is stays
        wait_for(lambda: new.admin.hget(cluster.key("lease"), "pid") == str(moved.pid), 30, "a leader on the new side")
        wait_for(lambda: _refuses(old), 20, "the old master to stop taking writes")
        since = datetime.now(UTC)
        wait_for(lambda: max(queued_instants(new.admin, "fast")) > since, 40, "the new side to work")
        on_both = set(queued_instants(old.admin, "fast")) & set(queued_instants(new.admin, "fast"))
        assert [one for one in on_both if one.timestamp() > failover_at + 0.2] == []
        assert len(queued_instants(old.admin, "within")) == 1
        assert queued_instants(new.admin, "within") == []
        cluster.assert_all_alive()
        skipped = [r for r in cluster.journal(new.admin) if r.get("why") == "state_loss"]
        assert {record["entry"] for record in skipped} == {"fast", "within"}
        return f"{who} found the new master: 0 duplicates, {sum(record['count'] for record in skipped)} skipped"


def _refuses(server: RedisServer) -> bool:
    try:
        server.admin.set("may this be written?", "")
    except redis.exceptions.RedisError:
        return True
    return False
