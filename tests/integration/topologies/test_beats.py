"""Replicas configured by environment variables: the lease in a Redis Cluster or behind Sentinel."""

import json

import pytest

from tests.faults.cluster import BeatCluster
from tests.integration.topologies.replica import cluster_url
from tests.support.servers import RedisCluster, RedisServer, SentinelCluster, wait_for

SPEC = {"fast": {"every": 0.2}}
SETTINGS = {"lease_ttl": 3}


def change_leader(cluster: BeatCluster, queue: RedisServer) -> None:
    """Kill the leader once messages arrive: the standby continues, each occurrence once."""
    wait_for(lambda: queue.admin.llen("celery") > 3, 30, "messages")
    wait_for(lambda: cluster.lease().get("presence"), 30, "presence")
    cluster.wait_until_up()
    leader = cluster.wait_for_leader()
    leader.kill()
    cluster.wait_for_leader(other_than=leader)
    before = queue.admin.llen("celery")
    wait_for(lambda: queue.admin.llen("celery") > before + 3, 40, "messages of the next")
    messages = [json.loads(raw)["headers"]["id"] for raw in queue.admin.lrange("celery", 0, -1)]
    assert len(messages) == len(set(messages))


@pytest.mark.slow
def test_a_lease_in_a_redis_cluster(server: RedisServer, redis_cluster: RedisCluster) -> None:
    """The queues are in another Redis, since kombu has no transport for a cluster."""
    urls = {"lease_urls": cluster_url(redis_cluster), "admin_url": redis_cluster.node_for("{ha-beat:tick}:lease").url}
    with BeatCluster(server.url, replicas=2, spec=SPEC, settings=SETTINGS, **urls) as cluster:
        change_leader(cluster, server)


@pytest.mark.slow
def test_a_broker_behind_sentinel(sentinels: SentinelCluster) -> None:
    """Lease and queues are there, by Celery's settings."""
    config = {"broker_transport_options": sentinels.transport_options}
    primary = sentinels.master
    options = {"admin_url": primary.url, "config": config}
    with BeatCluster(sentinels.url, replicas=2, spec=SPEC, settings=SETTINGS, **options) as cluster:
        change_leader(cluster, primary)
        assert "action=path_chosen path=atomic" in cluster.logs(10_000)
