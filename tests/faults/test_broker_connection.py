"""Broken, silent and refused connections to RabbitMQ: the outcome of the message.

A message is either certainly not sent, and sent again, or its outcome is unknown, and it is not.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from kombu import Exchange, Queue

from ha_beat.dispatch.broker_adapters import Sent
from ha_beat.dispatch.publisher import BLOCKED, Publisher
from ha_beat.errors import StoreUnavailable
from ha_beat.headers import with_header
from ha_beat.reasons import PublishOutcome
from ha_beat.testing import SettableClock
from tests.faults.proxy import TcpProxy
from tests.support.servers import RabbitMQ, wait_for

pytestmark = pytest.mark.slow

#: Bounds each wait on the broker.
TIMEOUT = 2.0

#: For operations that must not hang.
PATIENCE = 30.0

ACCEPTED = Sent(PublishOutcome.ACCEPTED)


class ProxiedPublisher:
    """Publisher that reaches the broker through a proxy, with its own queue."""

    def __init__(self, broker: RabbitMQ, **config: Any) -> None:
        self.broker = broker
        self.proxy = TcpProxy.for_url(broker.url)
        self.queue = f"queue-{uuid.uuid4().hex[:8]}"
        self.app = Celery("desk", broker=self.proxy.url(broker.url), set_as_current=False)
        self.app.conf.update(task_default_queue=self.queue, **config)
        self.clock = SettableClock()
        self.publisher = Publisher(self.app, TIMEOUT, self.clock)

    def message(self, task_id: str = "", **options: Any) -> Any:
        entry = ScheduleEntry(name="report", task="report", schedule=60, app=self.app)
        header = {"cluster": "desk", "entry": "report", "scheduled_at": "2030-01-01T12:00:00.000000+00:00"}
        return self.publisher.prepare(entry, (), {}, with_header(options, header, task_id or uuid.uuid4().hex))

    def send(self, message: Any = None) -> Sent:
        return self.publisher.send(self.message() if message is None else message)

    def begin(self) -> None:
        """Connect, declare and send a first message."""
        self.publisher.ready()
        assert self.send() == ACCEPTED

    def count(self) -> int:
        """Return the number of messages in the queue, without the proxy."""
        with self.app.connection_for_read(self.broker.url) as connection, connection.channel() as channel:
            found: int = channel.queue_declare(self.queue, passive=True).message_count
            return found

    def __enter__(self) -> ProxiedPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.reset()
        self.proxy.close()


@pytest.fixture
def desk(rabbitmq: RabbitMQ) -> Iterator[ProxiedPublisher]:
    with ProxiedPublisher(rabbitmq) as made:
        yield made


def bounded(act: Callable[[], object], desk: ProxiedPublisher) -> Exception | None:
    """Return the exception that it raises, in bounded time."""
    raised: list[Exception | None] = []

    def run() -> None:
        try:
            act()
        except Exception as exc:
            raised.append(exc)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    hung = thread.is_alive()
    if hung:
        desk.proxy.refuse()
        thread.join(PATIENCE)
    assert not hung, "it hangs"
    return raised[0]


def not_sent(act: Callable[[], object], desk: ProxiedPublisher) -> str:
    """Return why nothing was sent; the outcome must be certain, and in bounded time."""
    exc = bounded(act, desk)
    assert isinstance(exc, StoreUnavailable), exc
    assert not exc.acted
    return str(exc)


# --- Broken before anything was written: certainly not sent


def test_a_connection_that_broke_between_two_messages(desk: ProxiedPublisher):
    """The break is noticed before the second is written, without a round trip. The retry sends it."""
    desk.begin()
    second = desk.message()
    desk.proxy.refuse()
    not_sent(lambda: desk.send(second), desk)
    not_sent(lambda: desk.send(second), desk)
    desk.proxy.accept()
    desk.publisher.ready()
    assert desk.send(second) == ACCEPTED
    assert desk.count() == 2


def test_a_broker_that_is_stopped_between_two_messages(desk: ProxiedPublisher):
    """A clean stop: the broker closes the connection and refuses new ones."""
    desk.begin()
    second = desk.message()
    desk.broker.stop()
    why = not_sent(lambda: desk.send(second), desk)
    assert "CONNECTION_FORCED" in why or "closed" in why
    not_sent(lambda: desk.send(second), desk)
    not_sent(desk.publisher.ready, desk)
    desk.broker.start()
    desk.publisher.ready()
    assert desk.send(second) == ACCEPTED


def test_a_connection_that_breaks_while_a_queue_is_declared(desk: ProxiedPublisher):
    """The message itself has not been written yet."""
    messages = desk.message()
    desk.publisher.ready()
    desk.proxy.cut_reply_after(desk.queue.encode())
    not_sent(lambda: desk.send(messages), desk)
    assert desk.send(messages) == ACCEPTED
    assert desk.count() == 1


def test_a_broker_that_falls_silent_while_a_queue_is_declared(desk: ProxiedPublisher):
    """The time is bounded, since the main loop and the lease wait."""
    messages = desk.message()
    desk.publisher.ready()
    desk.proxy.blackhole()
    not_sent(lambda: desk.send(messages), desk)
    desk.proxy.heal()
    assert desk.send(messages) == ACCEPTED


# --- Written, and no answer: unknown


@pytest.mark.parametrize("fault", ["reply lost", "request lost"])
def test_a_message_that_was_written_and_not_answered(desk: ProxiedPublisher, fault: str):
    """Delivery to the broker is unknown."""
    desk.begin()
    if fault == "reply lost":
        desk.proxy.cut_reply_after(b"scheduled_at")
    else:
        desk.proxy.blackhole()
    sent = desk.send()
    assert (sent.outcome, sent.broken) == (PublishOutcome.UNKNOWN, True)
    desk.proxy.heal()
    assert desk.count() == (2 if fault == "reply lost" else 1)


def test_late_answer_to_an_aborted_send_is_not_the_next_ones(desk: ProxiedPublisher):
    """The answer arrives late, on a connection that is no longer read."""

    class BrokenOff(BaseException):
        pass

    def break_off(*_: object) -> None:
        raise BrokenOff

    desk.begin()
    desk.proxy.pause("reply")
    before = signal.signal(signal.SIGALRM, break_off)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(BrokenOff):
            desk.send()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    threading.Timer(0.5, desk.proxy.resume, ["reply"]).start()
    sent = desk.send(desk.message(exchange="nowhere", routing_key="x"))
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)


# --- Idle


@pytest.mark.parametrize("how", ["silence for all", "forgotten"])
def test_an_idle_connection_that_has_fallen_silent(desk: ProxiedPublisher, how: str):
    """A load balancer has dropped it silently. This is noticed before a message is sent over it."""
    desk.begin()
    desk.clock.advance(60)
    if how == "forgotten":
        desk.proxy.forget()
        assert bounded(desk.publisher.ready, desk) is None
    else:
        desk.proxy.blackhole()
        not_sent(desk.publisher.ready, desk)
        desk.proxy.heal()
        desk.publisher.ready()
    assert desk.send() == ACCEPTED
    assert desk.count() == 2


def test_every_read_has_a_timeout_that_tls_heeds(desk: ProxiedPublisher):
    """Python's TLS keeps reading after a timeout of the operating system, and so does amqp within a frame."""
    made = []
    settimeout = socket.socket.settimeout

    def note(one: socket.socket, value: float | None) -> None:
        made.append(value)
        settimeout(one, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "settimeout", note)
        desk.begin()
    # Timeouts that remain set after each wait.
    assert made[-1] == TIMEOUT


def test_a_connection_that_the_broker_closed_for_want_of_heartbeats(rabbitmq: RabbitMQ):
    """The next message uses a new connection."""
    with ProxiedPublisher(rabbitmq, broker_transport_options={"heartbeat": 1}) as desk:
        desk.begin()
        listing = ("-q", "list_connections", "pid")
        wait_for(lambda: not rabbitmq.run(rabbitmq.control, *listing).stdout.strip(), PATIENCE, "no connection")
        desk.publisher.ready()
        assert desk.send() == ACCEPTED
        assert desk.proxy.counters["connections"] == 2


# --- Refused


def test_a_message_that_no_queue_takes_is_refused(desk: ProxiedPublisher):
    """The broker would drop it silently."""
    desk.begin()
    gone = desk.message()
    with desk.app.connection_for_write(desk.broker.url) as connection, connection.channel() as channel:
        channel.queue_delete(desk.queue)
    sent = desk.send(gone)
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)
    assert "no queue takes it" in sent.detail
    assert desk.queue in sent.detail
    # The retry declares it again.
    assert desk.send(gone) == ACCEPTED
    assert desk.count() == 1


def test_a_broadcast_that_nobody_hears_is_accepted(rabbitmq: RabbitMQ):
    """As with stock beat."""
    everybody = Exchange("everybody", type="fanout")
    with ProxiedPublisher(rabbitmq, task_queues=[Queue("everybody", everybody)]) as desk:
        with desk.app.connection_for_write(rabbitmq.url) as connection, connection.channel() as channel:
            everybody(channel).declare()
        assert desk.send(desk.message(exchange="everybody", routing_key="")) == ACCEPTED


def test_a_message_that_cannot_be_put_into_frames_is_its_entrys_fault(desk: ProxiedPublisher):
    """It is certainly not sent, and the next one is."""
    desk.begin()
    sent = desk.send(desk.message(headers={"tenant": object()}))
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)
    assert desk.send() == ACCEPTED
    assert desk.count() == 2


def test_a_queue_that_was_declared_otherwise_is_its_entrys_fault(desk: ProxiedPublisher):
    """The broker refuses the declaration."""
    with desk.app.connection_for_write(desk.broker.url) as connection, connection.channel() as channel:
        Queue(desk.queue, max_length=5)(channel).declare()
    sent = desk.send()
    assert sent.outcome == PublishOutcome.REFUSED
    assert "inequivalent arg" in sent.detail


# --- Blocked


def test_a_broker_that_is_short_of_memory(desk: ProxiedPublisher):
    """At most one message is unknown. Nothing is sent until the broker unblocks the connection."""

    def limit(megabytes: str) -> None:
        done = desk.broker.run(desk.broker.control, "set_vm_memory_high_watermark", "absolute", megabytes)
        assert done.returncode == 0, done.stderr

    desk.begin()
    limit("1MB")
    try:
        outcomes, refusals = [], 0
        end = time.monotonic() + PATIENCE
        while refusals < 8 and time.monotonic() < end:
            try:
                desk.publisher.ready()
                outcomes.append(desk.send().outcome)
            except StoreUnavailable as exc:
                assert str(exc) == BLOCKED
                refusals += 1
                # An idle probe would get no answer and look like a broken connection.
                desk.clock.advance(60)
        assert refusals == 8, outcomes
        assert outcomes.count("unknown") <= 1, outcomes
    finally:
        limit("512MB")

    def ready() -> bool:
        try:
            desk.publisher.ready()
        except StoreUnavailable:
            return False
        return True

    wait_for(ready, PATIENCE, "the broker to take messages again")
    count = desk.count()
    assert desk.send() == ACCEPTED
    assert desk.count() == count + 1
