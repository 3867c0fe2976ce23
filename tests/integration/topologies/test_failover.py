"""After a failover or a move of keys, links and presence lead to the new node. Faults leak no connections."""

import time

import pytest

from tests.integration.topologies.replica import KEYS, Campaigner, broker_link, cluster_url, do, link
from tests.support.servers import RedisCluster, RedisServer, SentinelCluster, need, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("by", ["url", "broker"])
@pytest.mark.parametrize("how", ["killed", "demoted"])
def test_sentinel_failover(by: str, how: str) -> None:
    """A demoted primary stays up and would keep the subscribed connection."""
    with need(lambda: SentinelCluster(password="secret")) as made:
        options = made.transport_options
        way = link(made.url, **options) if by == "url" else broker_link(made.url, broker_transport_options=options)
        old = made.master
        with Campaigner(way) as replica:
            replica.wait_to_lead()
            made.wait_until_synced()
            if how == "killed":
                old.kill()
            else:
                with made.sentinels[0].client() as client:
                    client.execute_command("SENTINEL", "FAILOVER", made.name)
            new = made.wait_for_failover(old, timeout=60)

            def led_from_new() -> bool:
                record = new.admin.hgetall(KEYS.lease)
                subscribed = do(new, "PUBSUB NUMSUB", record.get("presence", ""))
                return record.get("state") == "held" and bool(record.get("presence")) and subscribed[1] == 1

            wait_for(led_from_new, 60, "to lead at the new primary, present there")
            if how == "demoted":
                assert do(old, "PUBSUB CHANNELS", "*:presence:*") == []


def test_keys_that_move_to_another_node() -> None:
    """A slot of a Redis Cluster moves to another node while the leader is subscribed to the old one."""
    with need(RedisCluster) as nodes:
        old = nodes.node_for(KEYS.lease)
        new = next(node for node in nodes.nodes if node is not old)
        slot = do(old, "CLUSTER KEYSLOT", KEYS.lease)
        with Campaigner(link(cluster_url(nodes))) as replica:
            replica.wait_to_lead()
            epoch = int(old.admin.hget(KEYS.lease, "epoch") or 0)
            old_id, new_id = do(old, "CLUSTER MYID"), do(new, "CLUSTER MYID")
            do(new, "CLUSTER SETSLOT", slot, "IMPORTING", old_id)
            do(old, "CLUSTER SETSLOT", slot, "MIGRATING", new_id)
            for key in do(old, "CLUSTER GETKEYSINSLOT", slot, 100):
                do(old, "MIGRATE", "127.0.0.1", new.port, key, 0, 5000)
            for node in (new, old, *nodes.nodes):
                do(node, "CLUSTER SETSLOT", slot, "NODE", new_id)

            def led_from_new() -> bool:
                record = new.admin.hgetall(KEYS.lease)
                return int(record.get("epoch", 0)) > epoch and bool(record.get("presence"))

            wait_for(led_from_new, 60, "to lead at the keys' new node, present there")
            assert nodes.node_for(KEYS.lease) is new
            replica.wait_to_lead()


@pytest.mark.parametrize("by", ["url", "broker"])
def test_faults_leave_no_connections_behind(server: RedisServer, by: str) -> None:
    """After fifty cuts of every connection there are as many as before: one for commands, one subscribed."""

    def ours() -> int:
        return len(server.admin.client_list()) - 1

    way = link(server.url) if by == "url" else broker_link(server.url)
    with Campaigner(way) as replica:
        replica.wait_to_lead()
        wait_for(lambda: replica.presence.channel, what="to be subscribed")
        time.sleep(0.5)
        before = ours()
        assert before <= 3
        for _ in range(50):
            do(server, "CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
            do(server, "CLIENT KILL", "TYPE", "pubsub")
            time.sleep(0.05)
        wait_for(lambda: replica.elector.handle.term, 30, "to lead again")
        wait_for(lambda: replica.presence.channel, 30, "to be subscribed again")
        wait_for(lambda: ours() <= before, 10, "no more connections than before")
    wait_for(lambda: ours() <= before - 1, 10, "the subscribed connection to end with the replica")
