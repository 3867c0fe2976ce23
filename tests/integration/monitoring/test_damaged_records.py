"""Each field of each stored record damaged in turn. Reading, showing and requests go on."""

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.status import Poller
from ha_beat.reasons import RequestKind
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.membership import Member, Upcoming
from ha_beat.store.request_queue import Reply, Request, Requests
from ha_beat.testing import SettableClock
from tests.faults.cluster import BeatCluster
from tests.integration.cli.test_commands import app_for, invoke
from tests.integration.monitoring.support import ask
from tests.support.servers import RedisServer, free_port, wait_for
from tests.unit.monitoring.scene import Scene

KEYS = Keys("tick")
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)

#: JSON texts that replace a field, beside its removal.
DAMAGE = [
    *("null", "true", "-1", "0", "1e400", "1e300", "NaN", "-Infinity", "1" + "0" * 18, "9" * 400, '""', "[]", "{}"),
    *('"x"', '"\\ud800"', '"2026-05-01T12:00:00"', '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"'),
    *('[["e", "t", 1e300]]', '{"a": 1}', '"' + "y" * 10_000 + '"'),
]

WRITTEN = {"ms": NOW_MS, "epoch": 5, "by": "beat-0", "detail": ""}
SPAN = {"at": NOW.isoformat(), "until": NOW.isoformat(), "count": 2, "base": NOW_MS * 1000}
VERDICT = {"verdict": "skipped", "entry": "fast", "name": "fast", "why": "missed", "id": "task-id", **SPAN, **WRITTEN}
PREVIOUS = {"previous": "beat-1", "previous_epoch": 4, "left_ms": NOW_MS}
TERM = {"kind": "term", "event": "acquired", "reason": "released", **PREVIOUS, **WRITTEN}
CONTROL = {"kind": "control", "event": "paused", "why": "", "of": 3, "count": 2, "asked_by": "me", "ms": NOW_MS}
MEMBER = json.loads(
    Member("x", upcoming=(Upcoming("e", "t", NOW_MS),), failing={"e": "w"}, not_ready={"a": "b"}).encoded()
)
ROW = json.loads(LedgerRow(NOW, "enqueued", scheduled_at=NOW, following=NOW, reason="x", task_id="i").encoded())
PAUSE = Pause(NOW_MS, "me", "why").as_data()
REQUEST = json.loads(Request(RequestKind.RUN, {"entry": "fast"}, "me").encoded())
REPLY = json.loads(Reply.parse('{"code": "sent", "data": {}, "leader": "x", "epoch": 5}').encoded())
LEASE = {"ttl_ms": "3000", "state": "held", "holder": "x", "epoch": "5", "seq": "5", "since_ms": "1", "renewed_ms": "1"}


def damaged(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the record, as JSON, with each field removed and damaged in turn."""
    for name in record:
        others = {key: value for key, value in record.items() if key != name}
        yield json.dumps(others)
        rest = json.dumps(others)[1:-1]
        yield from (f'{{"{name}": {text}{", " if rest else ""}{rest}}}' for text in DAMAGE)


@pytest.fixture
def client(shared_redis: RedisServer) -> redis.Redis:
    return shared_redis.client(decode_responses=False)


def add_journal(client: redis.Redis, raw: str) -> None:
    client.xadd(KEYS.journal, {"n": client.hincrby(KEYS.ledger, "m:journal", 1), "d": raw})


def damage_everything(client: redis.Redis) -> int:
    """Write each damaged record; return how many. Of those with one key, the caller writes each in turn."""
    count = 0
    for record in (VERDICT, TERM, CONTROL):
        for raw in damaged(record):
            add_journal(client, raw)
            count += 1
    for number, raw in enumerate(damaged(MEMBER)):
        client.hset(KEYS.members, f"damaged-{number}", f"{round(time.time() * 1000)} {raw}")
        count += 1
    for number, raw in enumerate(damaged(ROW)):
        client.hset(KEYS.ledger, f"e:damaged-{number}", raw)
        count += 1
    return count


def test_status_metrics_and_commands_show_damaged_records(client: redis.Redis, shared_redis: RedisServer):
    """Without a replica: whatever is stored, each reader answers."""
    assert damage_everything(client) > 500
    scene, clock = Scene(), SettableClock()
    quiet = {"compare_clocks": lambda _: None, "emit": scene.events.append}
    poller = Poller(scene.status, lambda: client, KEYS, clock, full=True, **quiet)
    site, app = Site(scene.status, scene.metrics().text, clock), app_for(shared_redis.url)

    def assert_all_answer() -> None:
        poller.poll()
        clock.advance(1)
        for path in ("/livez", "/readyz", "/status", "/metrics", "/leader"):
            assert b"could not be built" not in site.answer("GET", path).body, path
        assert b"could not be built" not in site.update()

    clock.advance(30)
    assert_all_answer()
    assert scene.status.snapshot.unreadable
    for pause in damaged(PAUSE):
        client.hset(KEYS.ledger, "m:paused", pause)
        assert_all_answer()
    for name in LEASE:
        for text in ("", "-1", "x", "9" * 400, "1" + "0" * 14, "nan", b"\xff"):
            client.hset(KEYS.lease, mapping={**LEASE, name: text})
            assert_all_answer()
    for command in (["status"], ["status", "--json"], ["history", "--limit", "2000"], ["history", "--json"], ["check"]):
        result = invoke(app, *command)
        assert "internal error" not in result.output, result.output[-300:]


def test_damaged_requests_and_replies_are_read(client: redis.Redis):
    requests = Requests(lambda: client, KEYS)
    for number, raw in enumerate(damaged(REQUEST)):
        client.hset(KEYS.requests, f"id-{number}", f"{NOW_MS} {NOW_MS} 0 {raw}")
    for number, text in enumerate(("x", "-1", "9" * 400, "1e3", "")):
        client.hset(KEYS.requests, f"time-{number}", f"{text} {text} {text} {json.dumps(REQUEST)}")
    waiting, _ = requests.waiting()
    assert len(waiting) > 60
    for raw in damaged(REPLY):
        reply = Reply.parse(raw)
        reply.encoded().encode()
        assert isinstance(reply.data, dict)


@pytest.mark.slow
def test_replicas_go_on_with_damaged_records(shared_redis: RedisServer, client: redis.Redis):
    """Election, requests, probes, `resume` and dispatch."""
    ports = [free_port(), free_port()]
    settings = {"lease_ttl": 3, "poll_interval": 0.05}
    env = [{"HA_BEAT_HTTP_BIND": f"127.0.0.1:{port}"} for port in ports]
    app = app_for(shared_redis.url)
    spec = {"fast": {"every": 0.5}}
    with BeatCluster(shared_redis.url, spec=spec, replicas=2, settings=settings, replica_env=env) as cluster:
        cluster.wait_for_leader()
        damage_everything(client)

        def assert_well() -> None:
            before = client.llen("celery")
            wait_for(lambda: client.llen("celery") > before + 1, 20, "messages")
            for port in ports:
                assert ask(port, "/livez").status == 200
                assert [ask(port, path).status for path in ("/status", "/metrics")] == [200, 200]

        times = ("x", "-1", "9" * 400, "1e3", "", str(NOW_MS))
        bodies = list(damaged(REQUEST))[:50]
        raws = [
            *(f"{at} {at} {at} {json.dumps(REQUEST)}" for at in times),
            *(f"{NOW_MS} 0 0 {body}" for body in bodies),
        ]
        client.hset(KEYS.requests, mapping={f"id-{number}": raw for number, raw in enumerate([*raws, "", "{", "1 2"])})
        wait_for(lambda: all(ask(port, "/readyz").status == 200 for port in ports), 30, "ready replicas")
        wait_for(lambda: client.hlen(KEYS.requests) == 0, 30, "answers to damaged requests")
        assert_well()
        for pause in list(damaged(PAUSE))[:: max(1, len(list(damaged(PAUSE))) // 8)]:
            client.hset(KEYS.ledger, "m:paused", pause)
            assert invoke(app, "step-down").exit_code == 0
            resumed = invoke(app, "resume", "--timeout", "10", "--json")
            assert resumed.exit_code == 0, resumed.output
            assert_well()
        lease = {"ttl_ms": "9" * 15, "state": "?", "nonce": "?", "epoch": "x", "seq": "", "gen": ""}
        for name, text in lease.items():
            client.hset(KEYS.lease, name, text)
            wait_for(lambda: cluster.leader() is not None, 30, f"a leader after {name}")
            assert_well()
        cluster.assert_all_alive()
