"""Outcomes of publishes through kombu, on in-memory and Redis transports."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from kombu import Exchange, Queue
from kombu.transport import memory

from ha_beat.clock import SystemClock
from ha_beat.dispatch.broker_adapters import Sent
from ha_beat.dispatch.message import NothingPublished
from ha_beat.dispatch.publisher import Publisher
from ha_beat.errors import StoreUnavailable
from ha_beat.headers import with_header
from ha_beat.reasons import PublishOutcome
from tests.faults.proxy import TcpProxy
from tests.support.servers import RedisServer, free_port

TASK_ID = "0f0e0d0c-0000-5000-8000-000000000000"
HEADER = {"cluster": "shop", "entry": "report", "scheduled_at": "2030-01-01T12:00:00.000000+00:00"}


def publisher_for(broker: str, **config: Any) -> tuple[Celery, Publisher]:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(task_default_queue="jobs.fifo", **config)
    return app, Publisher(app, 0.5, SystemClock())


def prepare(app: Celery, publisher: Publisher, task: str = "report") -> Any:
    entry = ScheduleEntry(name="report", task=task, schedule=60, app=app)
    return publisher.prepare(entry, (1,), {}, with_header({}, HEADER, TASK_ID))


def test_prepared_message_is_not_sent_before_send() -> None:
    """Each publish has its own id, by which the worker's guard tells them apart."""
    app, publisher = publisher_for("memory://")
    messages = prepare(app, publisher)
    with app.connection_for_read() as connection, connection.SimpleQueue("jobs.fifo") as queue:
        assert queue.qsize() == 0
        marks = []
        for _ in range(2):
            assert publisher.send(messages) == Sent(PublishOutcome.ACCEPTED)
            message = queue.get(block=False)
            marks.append(message.headers["ha_beat"].pop("publish"))
            assert message.headers["ha_beat"] == HEADER
            assert message.headers["id"] == TASK_ID
        assert len(set(marks)) == 2


@pytest.mark.parametrize("driver", ["sqs", "memory"])
def test_deduplication_id_on_sqs_is_the_task_id(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO queue then drops a second publish. kombu takes the id from the properties."""
    monkeypatch.setattr(memory.Transport, "driver_type", driver)
    app, publisher = publisher_for("memory://")
    with app.connection_for_read() as connection, connection.SimpleQueue("jobs.fifo") as queue:
        publisher.send(prepare(app, publisher))
        properties = queue.get(block=False).properties
    assert properties.get("MessageDeduplicationId") == (TASK_ID if driver == "sqs" else None)


def test_task_that_publishes_nothing_is_an_error() -> None:
    app, publisher = publisher_for("memory://")

    class Silent(app.Task):  # type: ignore[name-defined, misc]
        name = "silent"

        def apply_async(self, *_: Any, **__: Any) -> None:
            """Publish nothing."""

    app.register_task(Silent())
    with pytest.raises(NothingPublished):
        prepare(app, publisher, "silent")


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_refused_connection_certainly_sent_nothing(scheme: str) -> None:
    """It is checked before anything is claimed, and without the pauses of kombu's retries."""
    _, publisher = publisher_for(f"{scheme}://127.0.0.1:{free_port()}//")
    began = SystemClock().elapsed()
    with pytest.raises(StoreUnavailable) as caught:
        publisher.ready()
    assert not caught.value.acted
    # kombu's own retry takes 2 s.
    assert SystemClock().elapsed() - began < 1.8


def declared(server: RedisServer, *names: str) -> tuple[Celery, Publisher]:
    """Return a publisher to a broker with queues that each receive every message."""
    orders = Exchange("orders", type="topic")
    queues = [Queue(name, orders, routing_key="#") for name in names]
    app, publisher = publisher_for(server.url, task_queues=queues)
    app.conf.task_default_queue = names[0]
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue in app.amqp.queues.values():
            queue(channel).declare()
    return app, publisher


@pytest.mark.parametrize("names", [("first",), ("first", "second")])
def test_message_that_every_queue_refused_is_refused(names: tuple[str, ...], shared_redis: RedisServer) -> None:
    app, publisher = declared(shared_redis, *names)
    for name in names:
        shared_redis.admin.set(name, "not a list")
    sent = publisher.send(prepare(app, publisher))
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)
    assert "WRONGTYPE" in sent.detail


@pytest.mark.parametrize("wrong", ["first", "second"])
def test_message_that_one_of_several_queues_refused_is_accepted(wrong: str, shared_redis: RedisServer) -> None:
    """The other queue has the message, so that it must not be sent again."""
    app, publisher = declared(shared_redis, "first", "second")
    messages = prepare(app, publisher)
    assert publisher.send(messages) == Sent(PublishOutcome.ACCEPTED)
    shared_redis.admin.delete("first", "second")
    shared_redis.admin.set(wrong, "not a list")
    sent = publisher.send(messages)
    assert sent.outcome == PublishOutcome.ACCEPTED
    assert "not every queue took it" in sent.detail
    assert "WRONGTYPE" in sent.detail
    assert shared_redis.admin.llen("second" if wrong == "first" else "first") == 1


def test_message_to_several_queues_is_one_transaction(shared_redis: RedisServer) -> None:
    """A connection that breaks between two queues cannot leave one without the message."""
    app, publisher = declared(shared_redis, "first", "second", "third")
    messages = prepare(app, publisher)
    assert publisher.send(messages) == Sent(PublishOutcome.ACCEPTED)
    before = commands_of(shared_redis)
    assert publisher.send(messages) == Sent(PublishOutcome.ACCEPTED)
    after = commands_of(shared_redis)
    assert [after[name] - before[name] for name in ("multi", "lpush", "exec")] == [1, 3, 1]
    assert [shared_redis.admin.llen(name) for name in ("first", "second", "third")] == [2, 2, 2]


def commands_of(server: RedisServer) -> Counter[str]:
    stats: Any = server.admin.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()})


@pytest.mark.parametrize("queues", [1, 2])
def test_connection_lost_before_the_write_certainly_sent_nothing(queues: int, shared_redis: RedisServer) -> None:
    with TcpProxy.for_url(shared_redis.url) as proxy:
        app, publisher = declared(shared_redis, *["first", "second"][:queues])
        app.conf.broker_url = proxy.url(shared_redis.url)
        first, second = prepare(app, publisher), prepare(app, publisher)
        publisher.ready()
        assert publisher.send(first) == Sent(PublishOutcome.ACCEPTED)
        proxy.refuse()
        with pytest.raises(StoreUnavailable, match="refused") as caught:
            publisher.send(second)
        assert not caught.value.acted
        proxy.accept()
        publisher.ready()
        assert publisher.send(second) == Sent(PublishOutcome.ACCEPTED)


@pytest.mark.parametrize("fault", ["lost reply", "silence"])
def test_message_without_a_reply_has_an_unknown_outcome(fault: str, shared_redis: RedisServer) -> None:
    with TcpProxy.for_url(shared_redis.url) as proxy:
        app, publisher = publisher_for(proxy.url(shared_redis.url))
        app.conf.task_default_queue = "jobs"
        messages = prepare(app, publisher)
        assert publisher.send(messages) == Sent(PublishOutcome.ACCEPTED)
        if fault == "silence":
            proxy.blackhole()
        else:
            proxy.cut_reply_after(b"LPUSH")
        sent = publisher.send(messages)
        assert (sent.outcome, sent.broken) == (PublishOutcome.UNKNOWN, True)
        assert shared_redis.admin.llen("jobs") == (1 if fault == "silence" else 2)


@pytest.mark.parametrize("code", ["READONLY", "OOM"])
def test_read_only_or_full_redis_is_unavailable(code: str, redis_server: RedisServer) -> None:
    """The error concerns every message, and certainly nothing was sent."""
    server = redis_server
    app, publisher = publisher_for(server.url)
    messages = prepare(app, publisher)
    publisher.ready()
    assert publisher.send(messages) == Sent(PublishOutcome.ACCEPTED)
    if code == "OOM":
        server.admin.config_set("maxmemory", "1")
    else:
        server.admin.execute_command("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(StoreUnavailable, match=code) as caught:
        publisher.send(messages)
    assert not caught.value.acted
