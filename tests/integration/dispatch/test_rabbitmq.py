"""Messages on RabbitMQ equal those of stock beat."""

from __future__ import annotations

import copy
import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from kombu import Exchange, Queue
from kombu.common import Broadcast

from ha_beat.scheduler import HAScheduler
from tests.support.servers import RabbitMQ, RedisServer

ENTRY = "the entry"
BASIC = {"task": "shop.restock", "args": (1, "zwei"), "kwargs": {"three": 3}}
#: RabbitMQ refuses a message that expires decades later.
FAR = datetime.now(UTC).replace(microsecond=0) + timedelta(days=10)


def entry(**options: Any) -> dict[str, Any]:
    return {**BASIC, "options": options}


def topic() -> dict[str, Any]:
    orders = Exchange("orders", type="topic")
    keys = {"all": "order.#", "new": "order.new", "old": "order.old"}
    return {
        "task_queues": [Queue(name, orders, routing_key=key) for name, key in keys.items()],
        "task_default_queue": "all",
    }


def by_priority() -> dict[str, Any]:
    return {"task_queues": [Queue("graded", max_priority=9)], "task_default_queue": "graded"}


# Name: the app's configuration, the entry, the number of messages.
CASES: dict[str, tuple[Callable[[], dict[str, Any]], Mapping[str, Any], int]] = {
    "default queue": (dict, BASIC, 1),
    "queue option": (dict, entry(queue="slow"), 1),
    "direct exchange": (dict, entry(exchange="celery", routing_key="celery"), 1),
    "topic exchange to two queues": (topic, entry(exchange="orders", routing_key="order.new"), 2),
    "fanout": (lambda: {"task_queues": [Broadcast("everybody", queue="ear")]}, entry(queue="everybody"), 1),
    "priority": (by_priority, entry(priority=6), 1),
    "expires": (dict, entry(expires=3600), 1),
    "expires at": (dict, entry(expires=FAR), 1),
    "countdown": (dict, entry(countdown=600), 1),
    "headers": (dict, entry(headers={"tenant": "blue"}), 1),
    "compression": (dict, entry(compression="zlib"), 1),
    "pickle": (dict, {**entry(serializer="pickle"), "args": (FAR, {1, 2})}, 1),
    "transient": (dict, entry(delivery_mode=1), 1),
    "protocol 1": (lambda: {"task_protocol": 1}, entry(countdown=600), 1),
}


class Comparison:
    """Sender of an entry by stock beat and by ha_beat, each into empty queues."""

    def __init__(self, broker: RabbitMQ, redis: RedisServer, config: Mapping[str, Any]) -> None:
        self.app = Celery("messages", broker=broker.url, set_as_current=False)
        self.app.conf.update(timezone="UTC", ha_beat_redis_url=redis.url, ha_beat_cluster=uuid.uuid4().hex)
        self.app.conf.update(config)
        self.app.finalize()
        self.redis = redis

    def declare(self) -> None:
        with self.app.connection_for_write() as connection, connection.channel() as channel:
            for queue in self.app.amqp.queues.values():
                queue(channel).declare()

    def take_all(self) -> list[tuple[str, Any]]:
        """Return every message of every queue of the app, and delete the queues."""
        found = []
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            for queue in {queue.name for queue in self.app.amqp.queues.values()}:
                while (message := channel.basic_get(queue, no_ack=True)) is not None:
                    found.append((queue, message))
                channel.queue_delete(queue)
        return sorted(found, key=lambda pair: pair[0])

    def stock(self, line: Mapping[str, Any]) -> list[tuple[str, Any]]:
        self.declare()
        scheduler = Scheduler(self.app, lazy=True)
        due = ScheduleEntry(name=ENTRY, app=self.app, **{"schedule": 3600, **copy.deepcopy(dict(line))})
        scheduler.apply_async(due, producer=scheduler.producer, advance=False)
        scheduler.producer.connection.release()
        return self.take_all()

    def ours(self, line: Mapping[str, Any]) -> list[tuple[str, Any]]:
        self.declare()
        self.run({ENTRY: line})
        return self.take_all()

    def run(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """Run one replica until each of the overdue entries is enqueued."""
        overdue = datetime.now(UTC) - timedelta(minutes=90)
        self.app.conf.beat_schedule = {
            name: {"schedule": timedelta(hours=1), "last_run_at": overdue, **copy.deepcopy(dict(line))}
            for name, line in lines.items()
        }
        scheduler = HAScheduler(self.app, max_interval=0.02)
        try:
            deadline = time.monotonic() + 60
            while self.enqueued() < len(lines):
                scheduler.tick()
                assert time.monotonic() < deadline, "not everything was enqueued"
        finally:
            scheduler.close()
            scheduler.close()

    def enqueued(self) -> int:
        rows: Any = self.redis.admin.hvals(f"{{ha-beat:{self.app.conf.ha_beat_cluster}}}:ledger")
        return sum('"verdict":"enqueued"' in row for row in rows)


@pytest.mark.parametrize("case", CASES)
def test_message_equals_that_of_stock_beat(case: str, rabbitmq: RabbitMQ, shared_redis: RedisServer) -> None:
    """Same queues, body, properties and headers, except for ids, times and the header of ha_beat."""
    config, line, count = CASES[case]
    comparison = Comparison(rabbitmq, shared_redis, config())
    if case == "fanout":
        # Celery before 5.7 does not find the queues of a Broadcast at the first send of a process.
        with suppress(Exception):
            comparison.stock(line)
    stock, ours = comparison.stock(line), comparison.ours(line)
    if case == "fanout":
        # The first send may have left messages.
        stock = stock[-count:]
    assert len(ours) == count
    for _, message in ours:
        mark = message.headers.pop("ha_beat")
        assert mark["entry"] == ENTRY
        assert mark["publish"]
    assert [plain(queue, message) for queue, message in ours] == [plain(queue, message) for queue, message in stock]


def plain(queue: str, message: Any) -> dict[str, Any]:
    """Return the parts that must be equal. Instants depend on the time of sending, and are compared by the minute."""
    headers = dict(message.headers)
    headers.pop("celery_beat_task", None)  # beat before Celery 5.6 does not set it yet
    ids = {headers.get("id"), message.properties.get("correlation_id"), message.properties.get("reply_to")} - {None}
    body = message.body
    if not headers.get("id"):  # protocol 1
        content = json.loads(body)
        ids |= {content["id"]}
        body = {name: value for name, value in content.items() if name not in ("id", "eta")}
    properties = {name: value for name, value in message.properties.items() if name != "application_headers"}
    lasts = properties.pop("expiration", None)
    times = {name: headers.pop(name, None) for name in ("eta", "expires")}
    return {
        "queue": queue,
        "body": body,
        "content": (message.content_type, message.content_encoding),
        "exchange": message.delivery_info["exchange"],
        "routing_key": message.delivery_info["routing_key"],
        "headers": masked(headers, ids),
        "properties": masked(properties, ids),
        "lasts": None if lasts is None else pytest.approx(int(lasts), abs=60_000),
        "times": {name: about(value) for name, value in times.items()},
    }


def masked(value: Any, ids: set[Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: masked(item, ids) for name, item in value.items()}
    return "id" if isinstance(value, str) and value in ids else value


def about(instant: str | None) -> Any:
    if instant is None:
        return None
    return pytest.approx(datetime.fromisoformat(instant).timestamp(), abs=60)


@pytest.mark.slow
def test_confirmed_messages_per_second(
    rabbitmq: RabbitMQ, shared_redis: RedisServer, figure: Callable[[str], None]
) -> None:
    """Each occurrence is claimed, confirmed by the broker and recorded."""
    count = 400
    comparison = Comparison(rabbitmq, shared_redis, {})
    comparison.declare()
    began = time.monotonic()
    comparison.run({f"entry {number}": BASIC for number in range(count)})
    took = time.monotonic() - began
    assert len(comparison.take_all()) == count
    figure(f"RabbitMQ with confirms: {count / took:.0f} occurrences a second ({count} in {took:.2f} s)")
