"""`ha-beat doctor` for servers that are misconfigured, refuse writes or cannot be reached."""

import json
import time
from typing import Any

import pytest
from celery import Celery

from ha_beat.client import ClusterClient
from ha_beat.monitoring.doctor import examination
from ha_beat.reasons import Level, RedisRisk
from ha_beat.store.membership import Member
from tests.faults.cluster import BeatCluster
from tests.integration.cli.test_commands import app_for, invoke
from tests.support.servers import LOCALHOST, RedisServer, SentinelCluster, free_port, need, wait_for


def findings(app: Celery) -> dict[str, Any]:
    result = invoke(app, "doctor", "--timeout", "0.5", "--json")
    return {each["subject"]: each for each in json.loads(result.output)}


@pytest.mark.parametrize(
    ("max_lag", "sentinels_up", "level"), [(2, True, Level.OK), (9, True, Level.WARN), (2, False, Level.WARN)]
)
def test_doctor_compares_down_after_with_the_lag(max_lag: int, sentinels_up: bool, level: Level) -> None:
    node_args = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", str(max_lag))
    with need(lambda: SentinelCluster(password="secret", down_after=5.0, node_args=node_args)) as made:
        url = made.url if sentinels_up else f"sentinel://:secret@{LOCALHOST}:{free_port()}/0;{made.url}"
        app = app_for(url, broker_transport_options=made.transport_options)
        made.wait_until_synced()
        client = ClusterClient(app)
        client.view()
        if not sentinels_up:
            for sentinel in made.sentinels:
                sentinel.stop()
        found = {each.subject: each for each in examination.check_failover(client.client())}
        assert found["min-replicas-to-write"].level == Level.OK
        assert found["down-after"].level == level, found["down-after"]
        for count in (1, 0):
            made.nodes[0].admin.config_set("min-replicas-to-write", count)
            server = client.members.server_settings()
            assert (RedisRisk.NO_MIN_REPLICAS in server.risks()) == (count == 0)


def test_server_that_refuses_writes_is_examined(redis_server: RedisServer) -> None:
    app = app_for(redis_server.url)
    with BeatCluster(redis_server.url, replicas=1) as cluster:
        cluster.wait_for_leader()
        redis_server.admin.config_set("min-replicas-to-write", 1)
        assert invoke(app, "status").exit_code == 0
        result = invoke(app, "doctor", "--timeout", "0.5")
        assert (result.exit_code, "NOREPLICAS" in result.output) == (1, True), result.output


@pytest.mark.parametrize("broker", ["redis", "amqp"])
def test_unreachable_broker_is_named(redis_server: RedisServer, broker: str) -> None:
    """The lease's Redis answers, and is not blamed."""
    app = app_for(f"{broker}://user:hunter2@{LOCALHOST}:{free_port()}//", ha_beat_redis_url=redis_server.url)
    found = findings(app)
    assert found["redis"]["level"] == Level.OK
    assert found["broker"]["level"] == Level.FAIL
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("configured", ["ha_beat", "ha_beat.django", "ha_beat.django.schedulers:HADatabaseScheduler"])
def test_scheduler_other_than_the_settings_name_is_a_warning(redis_server: RedisServer, configured: str) -> None:
    """Django need not be set up for the scheduler that needs it."""
    app = app_for(redis_server.url)
    app.conf.beat_scheduler = configured
    classes = ["ha_beat.scheduler:HAScheduler", "ha_beat.django.schedulers:HADatabaseScheduler"]
    wanted, other = classes if configured == "ha_beat" else classes[::-1]
    members = ClusterClient(app).members
    members.announce(Member("one", scheduler=wanted))
    assert "scheduler" not in findings(app)
    members.announce(Member("two", scheduler=other))
    found = findings(app)["scheduler"]
    assert (found["level"], "two" in found["text"], "one" in found["text"]) == (Level.WARN, True, False)


def test_exception_in_a_check_is_reported(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:

    def broken(_: object) -> Any:
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(examination, "check_failover", broken)
    found = findings(app_for(redis_server.url))
    assert "internal error: TypeError" in found["redis"]["text"]
    assert "invariants" in found


def test_app_that_does_not_own_the_cluster_fails_the_check(redis_server: RedisServer) -> None:
    """Its replicas report it while the other app's leader is at work."""
    owner = app_for(redis_server.url)
    other = Celery("other", broker=redis_server.url, set_as_current=False)
    other.conf.ha_beat_cluster = "tick"
    with BeatCluster(redis_server.url, replicas=2, replica_env=[{}, {"APP_NAME": "other"}]) as cluster:
        cluster[1].kill()
        redis_server.admin.flushall()
        wait_for(lambda: cluster.leader() is cluster[0], 20, "the owner to lead")
        assert invoke(owner, "check").exit_code == 0
        assert invoke(other, "check").exit_code == 1
        cluster[1].start().wait_for_log("action=leading_forbidden reason=other_app")
        assert cluster.leader() is cluster[0]


def test_messages_that_no_worker_has_reported_are_a_warning(redis_server: RedisServer) -> None:
    app = app_for(redis_server.url)
    busy, now = ClusterClient(app).keys.busy, round(time.time() * 1000)
    assert "overlap" not in findings(app)
    redis_server.admin.hset(busy, mapping={"e:old": f"{now - 90_000} x", "e:new": f"{now} y", "e:bad": "z"})
    found = findings(app)["overlap"]
    assert (found["level"], "old" in found["text"], "new" in found["text"]) == (Level.WARN, True, False)
    redis_server.admin.hset(busy, "m:reported", now - 80_000)
    assert findings(app)["overlap"]["level"] == Level.OK
