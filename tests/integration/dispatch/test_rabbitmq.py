"""Messages on RabbitMQ equal those of stock beat."""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from kombu.common import Broadcast

from tests.integration.dispatch.conftest import BASIC, ENTRY, Comparison, entry, masked
from tests.support.servers import RabbitMQ, RedisServer

#: RabbitMQ refuses a message that expires decades later.
FAR = datetime.now(UTC).replace(microsecond=0) + timedelta(days=10)


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
    "fanout": (lambda: {"task_queues": [Broadcast("everybody", queue="one")]}, entry(queue="everybody"), 1),
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


class RabbitComparison(Comparison):
    """Comparison with a RabbitMQ as broker and a Redis for the lease."""

    def __init__(self, broker: RabbitMQ, server: RedisServer, config: Mapping[str, Any]) -> None:
        cluster = uuid.uuid4().hex
        app = Celery("messages", broker=broker.url, set_as_current=False)
        app.conf.update(timezone="UTC", ha_beat_redis_url=server.url, ha_beat_cluster=cluster)
        app.conf.update(config)
        app.finalize()
        super().__init__(server, app, cluster)

    def traffic(self, send: Callable[[], object]) -> list[tuple[str, Any]]:
        """Return every message of every queue of the app, and delete the queues."""
        found = []
        with self.app.connection_for_write() as connection, connection.channel() as channel:
            for queue in self.app.amqp.queues.values():
                queue(channel).declare()
            send()
            for queue in {queue.name for queue in self.app.amqp.queues.values()}:
                while (message := channel.basic_get(queue, no_ack=True)) is not None:
                    found.append((queue, message))
                channel.queue_delete(queue)
        return sorted(found, key=lambda pair: pair[0])


@pytest.mark.parametrize("case", CASES)
def test_message_equals_that_of_stock_beat(case: str, rabbitmq: RabbitMQ, shared_redis: RedisServer):
    """Queues, body, properties and headers are equal, except for ids, times and the header of ha_beat."""
    config, line, count = CASES[case]
    comparison = RabbitComparison(rabbitmq, shared_redis, config())
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
    headers, properties, body = dict(message.headers), dict(message.properties), message.body
    headers.pop("celery_beat_task", None)  # beat before Celery 5.6 does not set it yet
    properties.pop("application_headers", None)
    ids = {headers.get("id"), properties.get("correlation_id"), properties.get("reply_to")}
    if not headers.get("id"):  # protocol 1
        body = json.loads(body)
        ids.add(body["id"])
    delivery = {name: message.delivery_info[name] for name in ("exchange", "routing_key")}
    content = (message.content_type, message.content_encoding)
    return (
        masked({"headers": headers, "properties": properties, "body": body}, ids)
        | delivery
        | {"queue": queue, "content": content}
    )


@pytest.mark.slow
def test_confirmed_messages_per_second(rabbitmq: RabbitMQ, shared_redis: RedisServer, figure: Callable[[str], None]):
    """Each occurrence is claimed, confirmed by the broker and recorded."""
    count, took = 400, 0.0
    comparison = RabbitComparison(rabbitmq, shared_redis, {})

    def send() -> None:
        nonlocal took
        began = time.monotonic()
        comparison.run_scheduler({f"entry {number}": BASIC for number in range(count)})
        took = time.monotonic() - began

    assert len(comparison.traffic(send)) == count
    figure(f"RabbitMQ with confirms: {count / took:.0f} occurrences a second ({count} in {took:.2f} s)")
