"""redbeat's Redis behind Sentinel, as a Cluster and with TLS, by redbeat's own settings; and the rights there."""

import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from ha_beat import events
from tests.integration.topologies.conftest import TlsServer
from tests.integration.topologies.test_rights import OF_THE_CLIENT, REDBEAT, allow, denied, used_commands
from tests.support.servers import RedisCluster, RedisServer, SentinelCluster

pytest.importorskip("redbeat")

import ha_beat.redbeat
from ha_beat.reasons import Level
from ha_beat.redbeat.doctor import check_redbeat
from tests.integration.redbeat.beat import Beat


def sentinel(found: SentinelCluster) -> dict[str, Any]:
    service = {"sentinels": found.sentinel_addresses, "service_name": found.name, "db": 0, "retry_period": 5}
    connection = {"password": found.nodes[0].password, "socket_timeout": 1, "sentinel_kwargs": {"client_name": "beat"}}
    url = "redis-sentinel://ignored:26379/0"
    return {"redbeat_redis_url": url, "redbeat_redis_options": {**service, **connection}}


def cluster(found: RedisCluster) -> dict[str, Any]:
    return {"redbeat_redis_url": found.url, "redbeat_redis_options": {"cluster": True}}


def cluster_by_its_nodes(found: RedisCluster) -> dict[str, Any]:
    """Return settings from which redbeat's own client cannot be created under redis-py 8."""
    nodes = [{"host": "127.0.0.1", "port": str(node.port)} for node in found.nodes]
    url = "redis-cluster://ignored:30001/0"
    return {"redbeat_redis_url": url, "redbeat_redis_options": {"startup_nodes": nodes}, "redbeat_key_prefix": "nodes:"}


def tls_by_setting(found: TlsServer) -> dict[str, Any]:
    tls = {**found.client_options, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return {"redbeat_redis_url": found.url, "redbeat_redis_use_ssl": tls}


#: By name: the fixture of redbeat's Redis, and redbeat's settings for it.
WAYS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "sentinel": ("sentinels", sentinel),
    "cluster": ("redis_cluster", cluster),
    "cluster_with_a_hash_tag": ("redis_cluster", lambda found: {**cluster(found), "redbeat_key_prefix": "{red}:"}),
    "cluster_by_its_nodes": ("redis_cluster", cluster_by_its_nodes),
    "tls_by_setting": ("tls", tls_by_setting),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WAYS)
def test_entries_run_and_are_restored_by_settings_of_redbeat(
    request: pytest.FixtureRequest, shared_redis: RedisServer, kind: str
) -> None:
    """redbeat's own client saves, edits and deletes. Broker and lease are another Redis."""
    server, settings = WAYS[kind]
    found = request.getfixturevalue(server)
    static = {"static": {"task": "t", "schedule": 3600.0}}
    with closing(Beat(shared_redis, **settings(found), beat_schedule=static)) as beat:
        if kind == "cluster_by_its_nodes":
            beat.program = Celery("program", set_as_current=False)
            prefix = beat.app.conf.redbeat_key_prefix
            beat.program.conf.update(timezone="UTC", **{**cluster(found), "redbeat_key_prefix": prefix})
        use(beat)
        assert check_redbeat(beat.app, 1.0).level is Level.OK


def use(beat: Beat) -> None:
    """Save, edit, lose and delete entries, and wait until each takes effect."""
    entry = beat.save("one")
    beat.save("other", 3600.0)
    beat.until(lambda: beat.sent()["one"] > 1, "runs")
    beat.until(lambda: beat.entry("one").total_run_count > 1, "the run state")
    entry.args = [7]
    entry.save()
    beat.until(lambda: beat.scheduler.schedule["one"].args == [7], "the edit")
    lose(beat)
    beat.until(lambda: beat.seen(events.ScheduleRestored), "the restored entries")
    assert beat.seen(events.ScheduleRestored)[0].entries == 3
    assert beat.entry("one").args == [7]
    entry.delete()
    beat.loaded("other", "static")


def lose(beat: Beat) -> None:
    """Delete every key of redbeat."""
    from redbeat.schedulers import get_redis

    client = get_redis(beat.program)
    for key in list(client.scan_iter(f"{beat.program.redbeat_conf.key_prefix}*")):
        client.delete(key)


@pytest.mark.slow
def test_entries_survive_a_failover_of_sentinel(shared_redis: RedisServer, sentinels: SentinelCluster) -> None:
    with closing(Beat(shared_redis, **sentinel(sentinels))) as beat:
        entry = beat.save("one")
        beat.until(lambda: beat.sent()["one"] > 1, "runs")
        sentinels.wait_until_synced()
        old = sentinels.master
        old.stop()
        sent = beat.sent()["one"]
        beat.until(lambda: beat.sent()["one"] > sent + 2, "runs without redbeat's Redis")
        sentinels.wait_for_failover(old)
        count = beat.sent()["one"]
        beat.until(lambda: beat.entry("one").total_run_count >= count, "the run state")
        entry.delete()
        beat.until(lambda: "one" not in beat.scheduler.schedule, "the deletion")
        old.start()
        sentinels.wait_until_synced()


@pytest.mark.slow
def test_documented_rights_are_enough_for_redbeats_redis(shared_redis: RedisServer, server: RedisServer) -> None:
    """For ha_beat. A program saves the entries with its own rights."""
    with closing(Beat(shared_redis, redbeat_redis_url=allow(server, *REDBEAT))) as beat:
        beat.app.conf.beat_schedule = {"static": {"task": "t", "schedule": 3600.0}}
        beat.program = Celery("program", set_as_current=False)
        beat.program.conf.update(timezone="UTC", redbeat_redis_url=server.url)
        use(beat)
        assert check_redbeat(beat.app, 1.0).level is Level.OK
        beat.close()
        beat.app.conf.beat_schedule = {}
        beat.start()
        beat.until(lambda: "static" not in server.admin.smembers("redbeat::statics"), "the new settings")
        assert denied(server) - OF_THE_CLIENT == set()


def test_documented_rights_name_every_command_of_redbeats_scripts() -> None:
    folder = Path(str(ha_beat.redbeat.__file__)).parent / "lua"
    assert used_commands(folder) - set(REDBEAT) == set()
