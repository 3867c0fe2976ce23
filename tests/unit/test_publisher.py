"""Messages complete but for being sent, on transports of this process."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from kombu import Exchange, Queue
from kombu.transport import memory

from ha_beat.clock import SystemClock
from ha_beat.dispatch.header import with_header
from ha_beat.dispatch.message import NothingPublished
from ha_beat.dispatch.publisher import Publisher, Sent
from ha_beat.errors import StoreUnavailable
from tests.servers import RedisServer, free_port

TASK_ID = "0f0e0d0c-0000-5000-8000-000000000000"
HEADER = {"cluster": "shop", "entry": "report", "scheduled_at": "2030-01-01T12:00:00.000000+00:00"}


def publisher_for(broker: str, **config: Any) -> tuple[Celery, Publisher]:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(task_default_queue="jobs.fifo", **config)
    return app, Publisher(app, 0.5, SystemClock())


def prepare(app: Celery, publisher: Publisher, task: str = "report") -> Any:
    entry = ScheduleEntry(name="report", task=task, schedule=60, app=app)
    return publisher.prepare(entry, (1,), {}, with_header({}, HEADER, TASK_ID))


def test_nothing_is_sent_before_it_is_told_to() -> None:
    """A prepared message is complete; each sending marks it anew, so that the guard tells them apart."""
    app, publisher = publisher_for("memory://")
    messages = prepare(app, publisher)
    with app.connection_for_read() as connection, connection.SimpleQueue("jobs.fifo") as queue:
        assert queue.qsize() == 0
        marks = []
        for _ in range(2):
            assert publisher.send(messages) == Sent("accepted")
            message = queue.get(block=False)
            marks.append(message.headers["ha_beat"].pop("publish"))
            assert message.headers["ha_beat"] == HEADER
            assert message.headers["id"] == TASK_ID
        assert len(set(marks)) == 2


@pytest.mark.parametrize("driver", ["sqs", "memory"])
def test_on_sqs_the_deduplication_id_is_the_task_id(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO queue then drops a second sending by itself; kombu hands it what it finds among the properties."""
    monkeypatch.setattr(memory.Transport, "driver_type", driver)
    app, publisher = publisher_for("memory://")
    with app.connection_for_read() as connection, connection.SimpleQueue("jobs.fifo") as queue:
        publisher.send(prepare(app, publisher))
        properties = queue.get(block=False).properties
    assert properties.get("MessageDeduplicationId") == (TASK_ID if driver == "sqs" else None)


def test_a_task_that_publishes_nothing_is_an_error() -> None:
    """It went around the producer."""
    app, publisher = publisher_for("memory://")

    class Silent(app.Task):  # type: ignore[name-defined, misc]
        name = "silent"

        def apply_async(self, *_: Any, **__: Any) -> None:
            """Goes nowhere."""

    app.register_task(Silent())
    with pytest.raises(NothingPublished):
        prepare(app, publisher, "silent")


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_refuses_connections_is_known_to_have_done_nothing(scheme: str) -> None:
    """Asked before anything is claimed, and without kombu's pauses between tries."""
    _, publisher = publisher_for(f"{scheme}://127.0.0.1:{free_port()}//")
    began = SystemClock().elapsed()
    with pytest.raises(StoreUnavailable) as caught:
        publisher.ready()
    assert not caught.value.acted
    assert "can't be reached" in str(caught.value)
    # kombu's own way waits for 2 s and tries a second time.
    assert SystemClock().elapsed() - began < 1.8


@pytest.mark.parametrize(("queues", "outcome"), [(1, "refused"), (2, "unknown")])
def test_a_refusal_by_redis_is_certain_for_a_message_to_one_queue(
    queues: int, outcome: str, shared_redis: RedisServer
) -> None:
    """To several it is written one after the other: one of them may have it."""
    orders = Exchange("orders", type="topic")
    names = ["first", "second"][:queues]
    app, publisher = publisher_for(
        shared_redis.url, task_queues=[Queue(name, orders, routing_key="#") for name in names]
    )
    app.conf.task_default_queue = "first"
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue in app.amqp.queues.values():
            queue(channel).declare()
    for name in names:
        shared_redis.admin.set(name, "not a list")
    sent = publisher.send(prepare(app, publisher))
    assert (sent.outcome, sent.broken) == (outcome, False)
    assert "WRONGTYPE" in sent.why
