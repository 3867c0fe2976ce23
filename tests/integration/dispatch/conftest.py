"""Messages of an entry in Redis, as sent by stock beat and by ha_beat."""

from __future__ import annotations

import base64
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from kombu import Connection

from ha_beat.scheduler import HAScheduler
from tests.integration.store.conftest import bench, server_bench, servers  # noqa: F401 -- fixtures
from tests.support.servers import RedisServer

ENTRY = "the entry"
OWN_KEYS = "{ha-beat:"


@dataclass
class Traffic:
    """The messages in each list, oldest first, those published, and which keys will expire."""

    queues: dict[str, list[Any]] = field(default_factory=dict)
    published: list[tuple[str, Any]] = field(default_factory=list)
    expiring: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    @property
    def messages(self) -> list[Any]:
        return [message for messages in self.queues.values() for message in messages]


class Comparison:
    """Sender of an entry by stock beat and by ha_beat, each into an empty Redis."""

    def __init__(self, server: RedisServer, app: Celery, prepare: Callable[[Celery], Connection] | None) -> None:
        self.server = server
        self.app = app
        self._prepare = prepare

    def stock(self, entry: Mapping[str, Any]) -> Traffic:
        def send() -> None:
            scheduler = Scheduler(self.app, lazy=True)
            due = ScheduleEntry(name=ENTRY, app=self.app, **{"schedule": 3600, **copy.deepcopy(dict(entry))})
            scheduler.apply_async(due, producer=scheduler.producer, advance=False)
            scheduler.producer.connection.release()

        return self._traffic(send)

    def ours(self, entry: Mapping[str, Any]) -> Traffic:
        return self._traffic(lambda: self.run_scheduler({ENTRY: entry}))

    def run_scheduler(self, entries: Mapping[str, Mapping[str, Any]], settled: int | None = None) -> None:
        """Run one replica until each of the overdue entries has a verdict.

        ``settled`` is the number of entries that get one, by default all.
        """
        wanted = len(entries) if settled is None else settled
        overdue = datetime.now(UTC) - timedelta(minutes=90)
        self.app.conf.beat_schedule = {
            name: {"schedule": timedelta(hours=1), "last_run_at": overdue, **copy.deepcopy(dict(entry))}
            for name, entry in entries.items()
        }
        scheduler = HAScheduler(self.app, max_interval=0.02)
        try:
            deadline = time.monotonic() + 15
            while not self._settled(wanted):
                scheduler.tick()
                assert time.monotonic() < deadline, "nothing was enqueued"
        finally:
            if scheduler._loop.runtime is not None:
                # There are no other replicas, so do not wait for the removal of the member record.
                scheduler._loop.runtime.monitoring.poller.removed = True
            scheduler.close()
            scheduler.close()

    def ledger(self) -> dict[str, Any]:
        """Return the ledger's rows by entry."""
        rows: Any = self.server.admin.hgetall(f"{OWN_KEYS}{self.app.main}}}:ledger")
        return {name[2:]: json.loads(row) for name, row in rows.items() if name.startswith("e:")}

    def _settled(self, count: int) -> bool:
        return sum(row.get("verdict") in ("enqueued", "skipped") for row in self.ledger().values()) == count

    def _traffic(self, send: Callable[[], None]) -> Traffic:
        client: Any = redis.Redis.from_url(self.server.url, decode_responses=True, encoding_errors="surrogateescape")
        client.flushall()
        worker = self._prepare(self.app) if self._prepare is not None else None
        listener = client.pubsub(ignore_subscribe_messages=True)
        listener.psubscribe("*")
        listener.get_message(timeout=5.0)
        send()
        traffic = Traffic()
        client.publish("the end", "")
        for heard in iter(lambda: listener.get_message(timeout=5.0), None):
            if heard["channel"] == "the end":
                break
            if not heard["channel"].startswith(OWN_KEYS):
                traffic.published.append((heard["channel"], json.loads(heard["data"])))
        for key in sorted(client.keys("*")):
            if key.startswith(OWN_KEYS):
                continue
            if client.type(key) == "list":
                traffic.queues[key] = [json.loads(raw) for raw in reversed(client.lrange(key, 0, -1))]
            else:
                traffic.others.add(key)
            if client.pttl(key) > 0:
                traffic.expiring.add(key)
        listener.close()
        client.close()
        if worker is not None:
            worker.release()
        return traffic


def body_of(message: Mapping[str, Any]) -> bytes:
    """Return the message's body, decoded from the transport's encoding."""
    assert message["properties"]["body_encoding"] == "base64"
    return base64.b64decode(message["body"])


@pytest.fixture
def make_comparison(shared_redis: RedisServer) -> Callable[..., Comparison]:
    def make(
        config: Mapping[str, Any] | None = None,
        prepare: Callable[[Celery], Connection] | None = None,
        **transport: Any,
    ) -> Comparison:
        app = Celery("messages", broker=shared_redis.url, set_as_current=False)
        app.conf.update(timezone="UTC", broker_transport_options=transport)
        app.conf.update(dict(config or {}))
        app.finalize()
        return Comparison(shared_redis, app, prepare)

    return make
