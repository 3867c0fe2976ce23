"""Outcomes of publishes through kombu, on in-memory and Redis transports."""

from typing import Any, ClassVar

import pytest
from kombu import Exchange, Queue
from kombu.transport import memory

from ha_beat.clock import SystemClock
from ha_beat.dispatch.brokers import publisher
from ha_beat.dispatch.brokers.adapter import BrokerAdapter, Delivery, Sent
from ha_beat.dispatch.messages.build import Declined
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome
from ha_beat.testing import SettableClock
from tests.faults.proxy import TcpProxy
from tests.support.senders import HEADER, TASK_ID, Sender
from tests.support.servers import RedisServer, free_port

ACCEPTED = Sent(PublishOutcome.ACCEPTED)


def test_prepared_message_is_not_sent_before_send():
    """Each publish has its own id, by which the worker's guard distinguishes them."""
    sender = Sender("memory://")
    message = sender.prepare()
    with sender.app.connection_for_read() as connection, connection.SimpleQueue("jobs.fifo") as queue:
        assert queue.qsize() == 0
        ids = set()
        for _ in range(2):
            assert sender.send(message) == ACCEPTED
            sent = queue.get(block=False)
            ids.add(sent.headers["ha_beat"].pop("publish"))
            assert (sent.headers["ha_beat"], sent.headers["id"]) == (HEADER, TASK_ID)
            # Only SQS has this property.
            assert "MessageDeduplicationId" not in sent.properties
        assert len(ids) == 2


def test_task_that_publishes_nothing_has_declined():
    sender = Sender("memory://")

    class Silent(sender.app.Task):  # type: ignore[name-defined, misc]
        name = "silent"

        def apply_async(self, *_: Any, **__: Any) -> None:
            """Publish nothing."""

    sender.app.register_task(Silent())
    with pytest.raises(Declined):
        sender.prepare("silent")


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_refused_connection_certainly_sent_nothing(scheme: str):
    """The check makes no pauses, unlike kombu's retries, which take 2 s."""
    sender = Sender(f"{scheme}://127.0.0.1:{free_port()}//")
    took = []
    for _ in range(2):  # the first imports the transport
        began = SystemClock().elapsed()
        with pytest.raises(StoreUnavailable) as caught:
            sender.publisher.ready()
        assert not caught.value.acted
        took.append(SystemClock().elapsed() - began)
    assert min(took) < 1.8


def test_broker_that_was_unreachable_is_not_waited_for_ahead(monkeypatch: pytest.MonkeyPatch):
    """Otherwise the main loop would wait for the broker repeatedly while nothing is due."""
    sender, attempts, tried = Sender(f"amqp://127.0.0.1:{free_port()}//"), [], 0
    connection_for_write = sender.app.connection_for_write

    def connect(*args: Any, **options: Any) -> Any:
        attempts.append(1)
        return connection_for_write(*args, **options)

    monkeypatch.setattr(sender.app, "connection_for_write", connect)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            sender.prepare(ahead=True)
        tried = tried or len(attempts)
    assert len(attempts) == tried
    with pytest.raises(StoreUnavailable):
        sender.prepare()
    assert len(attempts) > tried
    connection_for_write = Sender("memory://").app.connection_for_write
    sender.prepare()
    assert sender.prepare(ahead=True)


def declared(server: RedisServer, *names: str) -> Sender:
    """Return a publisher to a broker with queues that each receive every message."""
    orders = Exchange("orders", type="topic")
    queues = [Queue(name, orders, routing_key="#") for name in names]
    sender = Sender(server.url, task_queues=queues, task_default_queue=names[0])
    with sender.app.connection_for_write() as connection, connection.channel() as channel:
        for queue in sender.app.amqp.queues.values():
            queue(channel).declare()
    return sender


@pytest.mark.parametrize("names", [("first",), ("first", "second")])
def test_message_that_every_queue_refused_is_refused(names: tuple[str, ...], shared_redis: RedisServer):
    sender = declared(shared_redis, *names)
    for name in names:
        shared_redis.admin.set(name, "not a list")
    sent = sender.send()
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)
    assert "WRONGTYPE" in sent.detail


@pytest.mark.parametrize(("wrong", "other"), [("first", "second"), ("second", "first")])
def test_message_that_one_of_several_queues_refused_is_accepted(wrong: str, other: str, shared_redis: RedisServer):
    """The other queue has the message, so it must not be sent again."""
    sender = declared(shared_redis, "first", "second")
    message = sender.prepare()
    assert sender.send(message) == ACCEPTED
    shared_redis.admin.delete("first", "second")
    shared_redis.admin.set(wrong, "not a list")
    sent = sender.send(message)
    assert sent.outcome == PublishOutcome.ACCEPTED
    assert "not every queue took it" in sent.detail
    assert "WRONGTYPE" in sent.detail
    assert shared_redis.admin.llen(other) == 1


def test_message_to_several_queues_is_one_transaction(shared_redis: RedisServer):
    """A connection that breaks between two queues cannot leave one queue without the message."""
    sender = declared(shared_redis, "first", "second", "third")
    message = sender.prepare()
    assert sender.send(message) == ACCEPTED
    shared_redis.admin.config_resetstat()
    assert sender.send(message) == ACCEPTED
    stats: Any = shared_redis.admin.info("commandstats")
    assert [stats[f"cmdstat_{name}"]["calls"] for name in ("multi", "lpush", "exec")] == [1, 3, 1]
    assert [shared_redis.admin.llen(name) for name in ("first", "second", "third")] == [2, 2, 2]


@pytest.mark.parametrize("queues", [1, 2])
def test_connection_lost_before_the_write_certainly_sent_nothing(queues: int, shared_redis: RedisServer):
    with TcpProxy.for_url(shared_redis.url) as proxy:
        sender = declared(shared_redis, *["first", "second"][:queues])
        sender.app.conf.broker_url = proxy.url(shared_redis.url)
        first, second = sender.prepare(), sender.prepare()
        sender.publisher.ready()
        assert sender.send(first) == ACCEPTED
        proxy.refuse()
        with pytest.raises(StoreUnavailable, match="refused") as caught:
            sender.send(second)
        assert not caught.value.acted
        proxy.accept()
        sender.publisher.ready()
        assert sender.send(second) == ACCEPTED


@pytest.mark.parametrize(("fault", "arrived"), [("lost reply", 2), ("silence", 1)])
def test_message_without_a_reply_has_an_unknown_outcome(fault: str, arrived: int, shared_redis: RedisServer):
    with TcpProxy.for_url(shared_redis.url) as proxy:
        sender = Sender(proxy.url(shared_redis.url), task_default_queue="jobs")
        message = sender.prepare()
        assert sender.send(message) == ACCEPTED
        if fault == "silence":
            proxy.blackhole()
        else:
            proxy.cut_reply_after(b"LPUSH")
        sent = sender.send(message)
        assert (sent.outcome, sent.broken) == (PublishOutcome.UNKNOWN, True)
        assert shared_redis.admin.llen("jobs") == arrived


@pytest.mark.parametrize("code", ["READONLY", "OOM"])
def test_read_only_or_full_redis_is_unavailable(code: str, redis_server: RedisServer):
    """The error concerns every message, and certainly nothing was sent."""
    sender = Sender(redis_server.url)
    message = sender.prepare()
    sender.publisher.ready()
    assert sender.send(message) == ACCEPTED
    if code == "OOM":
        redis_server.admin.config_set("maxmemory", "1")
    else:
        redis_server.admin.execute_command("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(StoreUnavailable, match=code) as caught:
        sender.send(message)
    assert not caught.value.acted


class AnsweringLate(BrokerAdapter):
    """Adapter that answers in ``wait_for_answers``, and can fail for all messages together."""

    waiting: list[Delivery]
    failing = False
    #: True if the connection breaks before the next message.
    breaks = False
    probes: ClassVar[list[None]] = []
    #: For each message, how many others had no answer when it was sent.
    together: ClassVar[list[int]] = []

    def open(self) -> Any:
        self.waiting = []
        return super().open()

    def unanswered(self) -> int:
        return len(self.waiting)

    def probe(self) -> None:
        self.probes.append(None)

    def check(self) -> bool:
        if AnsweringLate.breaks:
            AnsweringLate.breaks = False
            self.lost_together = self.must_be_replaced = True
            raise OSError("cut")
        return False

    def goes_alone(self, _: object) -> bool:
        return False

    def put(self, _: object, __: object, delivery: Delivery) -> None:
        self.together.append(len(self.waiting))
        self.waiting.append(delivery)

    def wait_for_answers(self, *_: object) -> None:
        unknown = Sent(PublishOutcome.UNKNOWN, "closed")
        failed = AnsweringLate.failing and len(self.waiting) > 1
        self.must_be_replaced = self.lost_together = failed
        for delivery in self.waiting:
            delivery.sent = unknown if failed else ACCEPTED
        self.waiting = []


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def answered_late(monkeypatch: pytest.MonkeyPatch, clock: SettableClock) -> Sender:
    """Return a sender whose broker answers late."""
    monkeypatch.setitem(publisher._ADAPTERS, "memory", AnsweringLate)  # type: ignore[arg-type]
    monkeypatch.setattr(memory.Transport, "driver_type", "memory")
    monkeypatch.setattr(AnsweringLate, "together", [])
    monkeypatch.setattr(AnsweringLate, "probes", [])
    return Sender("memory://", clock=clock)


def sends(sender: Sender, count: int) -> tuple[list[int], int]:
    """Return for each message how many others had no answer, and how many were accepted."""
    AnsweringLate.together.clear()
    sent = sender.send_together([sender.prepare() for _ in range(count)])
    return list(AnsweringLate.together), sent.count(ACCEPTED)


def test_messages_go_one_by_one_after_several_were_lost_together(answered_late: Sender, clock: SettableClock):
    """One of them may be the cause, and fail again."""

    def send(count: int) -> tuple[list[int], int]:
        return sends(answered_late, count)

    assert send(1) == ([0], 1)  # it declares the queue
    assert send(3) == ([0, 1, 2], 3)
    AnsweringLate.failing = True
    assert send(3) == ([0, 1, 2], 0)
    AnsweringLate.failing = False
    assert send(3) == ([0, 0, 0], 3)
    clock.advance(301)
    assert send(3) == ([0, 1, 2], 3)
    AnsweringLate.breaks = True
    with pytest.raises(StoreUnavailable):
        send(1)
    assert send(3) == ([0, 0, 0], 3)


def test_batch_without_messages_does_not_count_as_contact(answered_late: Sender, clock: SettableClock):
    """The connection may be lost unnoticed, so it is probed before the next message."""
    sends(answered_late, 1)
    for _ in range(2):
        clock.advance(3)
        answered_late.publisher.wait_for_answers()
    answered_late.publisher.ready()
    assert len(AnsweringLate.probes) == 1


def test_message_that_goes_alone_waits_before_it_is_sent(answered_late: Sender, monkeypatch: pytest.MonkeyPatch):
    """Between the wait and the send, the dispatcher checks that the message may still be sent."""
    sends(answered_late, 1)
    first, second = Delivery(), answered_late.prepare()
    answered_late.publisher.send(answered_late.prepare(), first, alone=False)
    assert not answered_late.publisher.wait_if_alone(second, lambda: None)
    assert first.sent is None
    monkeypatch.setattr(AnsweringLate, "goes_alone", lambda *_: True)
    assert answered_late.publisher.wait_if_alone(second, lambda: None)
    assert first.sent == ACCEPTED
