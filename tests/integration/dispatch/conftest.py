"""Messages of an entry, as stock beat and as ha_beat send them."""

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
from ha_beat.store.keys import Keys
from tests.integration.store.conftest import bench, server_bench, servers  # noqa: F401 -- fixtures
from tests.support.claim_leader import Leader
from tests.support.schedulers import closing
from tests.support.servers import RedisServer

ENTRY = "the entry"
BASIC = {"task": "shop.restock", "args": (1, "zwei"), "kwargs": {"three": 3}}
OWN_KEYS = "{ha-beat:"


def entry(**options: Any) -> dict[str, Any]:
    return {**BASIC, "options": options}


class Comparison:
    """Sender of an entry by stock beat and by ha_beat, each into an empty broker."""

    #: Seconds until every entry has a verdict.
    patience = 60

    def __init__(self, server: RedisServer, app: Celery, cluster: str = "messages") -> None:
        self.server = server
        self.app = app
        self.keys = Keys(cluster)

    def traffic(self, send: Callable[[], object]) -> Any:
        """Return what is in the broker after a send into an empty one."""
        raise NotImplementedError

    def stock(self, line: Mapping[str, Any]) -> Any:
        def send() -> None:
            scheduler = Scheduler(self.app, lazy=True)
            due = ScheduleEntry(name=ENTRY, app=self.app, **{"schedule": 3600, **copy.deepcopy(dict(line))})
            scheduler.apply_async(due, producer=scheduler.producer, advance=False)
            scheduler.producer.connection.release()

        return self.traffic(send)

    def ours(self, line: Mapping[str, Any]) -> Any:
        return self.traffic(lambda: self.run_scheduler({ENTRY: line}))

    def run_scheduler(self, lines: Mapping[str, Mapping[str, Any]], settled: int | None = None) -> None:
        """Run one replica until ``settled`` of the overdue entries, by default all, have a verdict."""
        overdue = datetime.now(UTC) - timedelta(minutes=90)
        self.app.conf.beat_schedule = {
            name: {"schedule": timedelta(hours=1), "last_run_at": overdue, **copy.deepcopy(dict(line))}
            for name, line in lines.items()
        }
        scheduler = HAScheduler(self.app, max_interval=0.02)
        deadline = time.monotonic() + self.patience
        with closing(scheduler):
            while self._with_verdict() != (len(lines) if settled is None else settled):
                scheduler.tick()
                assert time.monotonic() < deadline, "nothing was enqueued"
            # There are no other replicas, so do not wait for the removal of the member record.
            scheduler._loop.runtime.monitoring.poller.removed = True

    def ledger(self) -> dict[str, Any]:
        """Return the ledger's rows by entry."""
        rows = self.server.admin.hgetall(self.keys.ledger)
        return {name[2:]: json.loads(row) for name, row in rows.items() if name.startswith("e:")}

    def _with_verdict(self) -> int:
        return sum(row.get("verdict") in ("enqueued", "skipped") for row in self.ledger().values())


@dataclass
class Traffic:
    """Messages in each list, oldest first, and on each channel; keys that will expire, and all other keys."""

    queues: dict[str, list[Any]] = field(default_factory=dict)
    published: list[tuple[str, Any]] = field(default_factory=list)
    expiring: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    @property
    def messages(self) -> list[Any]:
        return [message for messages in self.queues.values() for message in messages]


class RedisComparison(Comparison):
    """Comparison with a Redis as broker. ``prepare`` declares queues as a worker does."""

    prepare: Callable[[Celery], Connection] | None = None

    def traffic(self, send: Callable[[], object]) -> Traffic:
        client: Any = redis.Redis.from_url(self.server.url, decode_responses=True, encoding_errors="surrogateescape")
        client.flushall()
        worker = self.prepare(self.app) if self.prepare else None
        listener = client.pubsub(ignore_subscribe_messages=True)
        listener.psubscribe("*")
        listener.get_message(timeout=5.0)
        send()
        client.publish("the end", "")
        traffic = Traffic()
        for heard in iter(lambda: listener.get_message(timeout=5.0), None):
            if heard["channel"] == "the end":
                break
            if not heard["channel"].startswith(OWN_KEYS):
                traffic.published.append((heard["channel"], json.loads(heard["data"])))
        for key in sorted(key for key in client.keys("*") if not key.startswith(OWN_KEYS)):
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

    def queued(self) -> list[str]:
        """Return the entries whose messages are in the queue, oldest first."""
        raw = self.server.admin.lrange("celery", 0, -1)
        return [json.loads(message)["headers"]["ha_beat"]["entry"] for message in reversed(raw)]


@pytest.fixture
def leader(shared_redis: RedisServer) -> Leader:
    return Leader(shared_redis)


MakeComparison = Callable[..., RedisComparison]


@pytest.fixture
def make_comparison(shared_redis: RedisServer) -> MakeComparison:
    def make(
        config: Mapping[str, Any] | None = None, prepare: Callable[[Celery], Connection] | None = None, **transport: Any
    ) -> RedisComparison:
        app = Celery("messages", broker=shared_redis.url, set_as_current=False)
        app.conf.update({"timezone": "UTC", "broker_transport_options": transport, **(config or {})})
        app.finalize()
        comparison = RedisComparison(shared_redis, app)
        comparison.prepare = prepare
        return comparison

    return make


def body_of(message: Mapping[str, Any]) -> bytes:
    """Return the message's body, decoded from the transport's encoding."""
    assert message["properties"]["body_encoding"] == "base64"
    return base64.b64decode(message["body"])


class Instant:
    """Instant that equals another one less than a minute away with the same offset from UTC."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __repr__(self) -> str:
        return f"about {self.at.isoformat()}"

    def __eq__(self, other: object) -> bool:
        offsets_are_equal = isinstance(other, Instant) and self.at.utcoffset() == other.at.utcoffset()
        return offsets_are_equal and abs(self.at - other.at) < timedelta(minutes=1)

    __hash__ = None  # type: ignore[assignment]


_TIMES: dict[str, Callable[[str], datetime]] = {
    "eta": datetime.fromisoformat,
    "expires": datetime.fromisoformat,
    "expiration": lambda milliseconds: datetime.fromtimestamp(int(milliseconds) / 1000, UTC),
}


def masked(value: Any, ids: set[Any], *, exact: bool = False) -> Any:
    """Replace ids and, unless ``exact``, each instant by one that is equal to instants close to it."""
    if isinstance(value, Mapping):
        return {
            name: Instant(_TIMES[name](item))
            if not exact and name in _TIMES and isinstance(item, str)
            else masked(item, ids, exact=exact)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [masked(item, ids, exact=exact) for item in value]
    return "id" if isinstance(value, str) and value in ids else value
