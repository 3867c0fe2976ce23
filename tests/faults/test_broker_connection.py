"""Broken, silent and refused connections to RabbitMQ: the outcome of the message.

A message that was certainly not sent is sent again. A message of unknown outcome is not.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
from kombu import Exchange, Queue

from ha_beat.dispatch.brokers.adapter import Sent
from ha_beat.dispatch.brokers.publisher import BLOCKED
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome
from ha_beat.testing import SettableClock
from tests.faults.claims import new_queue
from tests.faults.proxy import TcpProxy
from tests.support.senders import Sender
from tests.support.servers import RabbitMQ, wait_for

pytestmark = pytest.mark.slow

#: Bounds each wait on the broker.
TIMEOUT = 2.0

#: For operations that must not hang.
PATIENCE = 30.0

ACCEPTED = Sent(PublishOutcome.ACCEPTED)


class ProxiedPublisher(Sender):
    """Publisher that reaches the broker through a proxy, with its own queue."""

    def __init__(self, broker: RabbitMQ, **config: Any) -> None:
        self.broker = broker
        self.proxy = TcpProxy.for_url(broker.url)
        self.queue = new_queue()
        self.clock = SettableClock()
        super().__init__(self.proxy.url(broker.url), TIMEOUT, self.clock, task_default_queue=self.queue, **config)

    def unanswered(self) -> int:
        adapter = self.publisher._adapter
        assert adapter is not None
        adapter.check()
        return adapter.unanswered()

    def begin(self) -> None:
        """Connect, declare and send a first message."""
        self.publisher.ready()
        assert self.send() == ACCEPTED

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """Open a channel that does not go through the proxy."""
        with self.app.connection_for_write(self.broker.url) as connection, connection.channel() as channel:
            yield channel

    def count(self) -> int:
        """Return the number of messages in the queue."""
        with self.channel() as channel:
            return channel.queue_declare(self.queue, passive=True).message_count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.reset()
        self.proxy.close()


@pytest.fixture
def proxied(rabbitmq: RabbitMQ) -> Iterator[ProxiedPublisher]:
    with ProxiedPublisher(rabbitmq) as made:
        yield made


def bounded(act: Callable[[], object], proxied: ProxiedPublisher) -> Exception | None:
    """Call a function. Return its exception; fail if it takes too long."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as exc:
            raised.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        proxied.proxy.refuse()
        pytest.fail("it hangs")
    return raised[0] if raised else None


def not_sent(act: Callable[[], object], proxied: ProxiedPublisher) -> str:
    """Return why certainly nothing was sent; fail if it takes too long."""
    exc = bounded(act, proxied)
    assert isinstance(exc, StoreUnavailable), exc
    assert not exc.acted
    return str(exc)


# --- Broken before anything was written: certainly not sent


@pytest.mark.parametrize("stopped", [False, True], ids=["connection broken", "broker stopped"])
def test_message_after_a_break_is_certainly_not_sent(proxied: ProxiedPublisher, stopped: bool):
    """The break is noticed before the second message is written, without a round trip. The retry sends it."""
    proxied.begin()
    second = proxied.prepare()
    fault, repair = (
        (proxied.broker.stop, proxied.broker.start) if stopped else (proxied.proxy.refuse, proxied.proxy.accept)
    )
    fault()
    why = not_sent(lambda: proxied.send(second), proxied)
    assert not stopped or "CONNECTION_FORCED" in why or "closed" in why
    not_sent(lambda: proxied.send(second), proxied)
    not_sent(proxied.publisher.ready, proxied)
    repair()
    proxied.publisher.ready()
    assert proxied.send(second) == ACCEPTED
    assert proxied.count() == 2


@pytest.mark.parametrize("silent", [False, True], ids=["reply lost", "silence"])
def test_message_is_certainly_not_sent_if_declaring_its_queue_fails(proxied: ProxiedPublisher, silent: bool):
    """In bounded time, since the main loop waits."""
    message = proxied.prepare()
    proxied.publisher.ready()
    proxied.proxy.blackhole() if silent else proxied.proxy.cut_reply_after(proxied.queue.encode())
    not_sent(lambda: proxied.send(message), proxied)
    proxied.proxy.heal()
    assert proxied.send(message) == ACCEPTED
    assert proxied.count() == 1


# --- Written, and no answer: unknown


@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "request lost"])
def test_delivery_of_an_unanswered_message_is_unknown(proxied: ProxiedPublisher, arrives: bool):
    proxied.begin()
    proxied.proxy.cut_reply_after(b"scheduled_at") if arrives else proxied.proxy.blackhole()
    sent = proxied.send()
    assert (sent.outcome, sent.broken) == (PublishOutcome.UNKNOWN, True)
    proxied.proxy.heal()
    assert proxied.count() == 1 + arrives


def test_late_answer_to_an_aborted_send_is_not_taken_for_the_next(proxied: ProxiedPublisher):
    class BrokenOff(BaseException):
        pass

    def break_off(*_: object) -> None:
        raise BrokenOff

    proxied.begin()
    proxied.proxy.pause("reply")
    before = signal.signal(signal.SIGALRM, break_off)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(BrokenOff):
            proxied.send()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    threading.Timer(0.5, proxied.proxy.resume, ["reply"]).start()
    sent = proxied.send(proxied.prepare(exchange="nowhere", routing_key="x"))
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)


# --- Several messages at a time


def test_messages_that_are_sent_together_are_all_confirmed(proxied: ProxiedPublisher):
    proxied.begin()
    assert proxied.send_together([proxied.prepare() for _ in range(50)]) == [ACCEPTED] * 50
    assert proxied.count() == 51


def test_connection_cut_after_some_answers_leaves_the_others_unknown(proxied: ProxiedPublisher):
    proxied.begin()

    def cut() -> None:
        wait_for(lambda: proxied.unanswered() == 0, PATIENCE, "the first answers")
        proxied.proxy.cut_reply_after(b"scheduled_at")

    sent = proxied.send_together([proxied.prepare() for _ in range(4)], cut)
    assert sent[:3] == [ACCEPTED] * 3
    assert (sent[3].outcome, sent[3].broken) == (PublishOutcome.UNKNOWN, True)
    proxied.proxy.heal()
    proxied.publisher.ready()
    assert proxied.send() == ACCEPTED
    assert proxied.count() == 6


def test_silent_broker_leaves_what_it_has_not_answered_unknown(proxied: ProxiedPublisher):
    proxied.begin()
    proxied.proxy.pause("reply")
    sent = proxied.send_together([proxied.prepare() for _ in range(3)])
    assert [(one.outcome, one.broken) for one in sent] == [(PublishOutcome.UNKNOWN, True)] * 3
    proxied.proxy.heal()
    assert proxied.count() == 4


def test_full_queue_rejects_single_messages(rabbitmq: RabbitMQ):
    limits = {"x-max-length": 3, "x-overflow": "reject-publish"}
    with ProxiedPublisher(rabbitmq) as proxied:
        proxied.app.conf.task_queues = [Queue(proxied.queue, queue_arguments=limits)]
        proxied.begin()
        sent = proxied.send_together([proxied.prepare() for _ in range(4)])
        assert [one.outcome for one in sent].count(PublishOutcome.UNKNOWN) == 2
        assert not any(one.broken for one in sent)
        assert proxied.proxy.counters["connections"] == 1


def test_message_that_no_queue_takes_is_refused_among_others(rabbitmq: RabbitMQ):
    with ProxiedPublisher(rabbitmq) as proxied, ProxiedPublisher(rabbitmq) as other:
        proxied.begin()
        gone = [proxied.prepare(queue=other.queue) for _ in range(3)]
        assert proxied.send(gone[0]) == ACCEPTED
        with proxied.channel() as channel:
            channel.queue_delete(other.queue)
        sent = proxied.send_together([proxied.prepare(), gone[1], proxied.prepare()])
        assert (sent[0], sent[2]) == (ACCEPTED, ACCEPTED)
        assert sent[1].outcome is PublishOutcome.REFUSED
        assert proxied.send(gone[2]) == ACCEPTED


def test_closed_channel_puts_the_others_in_doubt_once(rabbitmq: RabbitMQ):
    """The broker does not name the message at fault, so the next messages are sent one by one for a while."""
    orders = Exchange("orders", type="topic")
    with ProxiedPublisher(rabbitmq) as proxied:
        proxied.app.conf.task_queues = [Queue(proxied.queue), Queue("orders", orders, routing_key="orders")]
        proxied.begin()

        def send(*, one_by_one: bool = False) -> list[PublishOutcome]:
            with proxied.channel() as channel:
                assert proxied.send(proxied.prepare(queue="orders")) == ACCEPTED
                channel.exchange_delete("orders")
            messages = [proxied.prepare(), proxied.prepare(queue="orders"), proxied.prepare()]
            if not one_by_one:
                proxied.proxy.pause("reply")
            sent = proxied.send_together(messages, before_wait=lambda: proxied.proxy.resume("reply"))
            return [one.outcome for one in sent]

        unknown, accepted = PublishOutcome.UNKNOWN, PublishOutcome.ACCEPTED
        assert send()[1:] == [unknown, unknown]
        assert send(one_by_one=True) == [accepted, PublishOutcome.REFUSED, accepted]
        proxied.clock.advance(301)
        assert send()[1:] == [unknown, unknown]


# --- Idle


@pytest.mark.parametrize("how", ["silence for all", "forgotten"])
def test_silent_idle_connection_is_noticed_before_a_message_is_sent(proxied: ProxiedPublisher, how: str):
    proxied.begin()
    proxied.clock.advance(60)
    if how == "forgotten":
        proxied.proxy.forget()
        assert bounded(proxied.publisher.ready, proxied) is None
    else:
        proxied.proxy.blackhole()
        not_sent(proxied.publisher.ready, proxied)
        proxied.proxy.heal()
        proxied.publisher.ready()
    assert proxied.send() == ACCEPTED
    assert proxied.count() == 2


def test_every_read_has_a_timeout_that_tls_heeds(proxied: ProxiedPublisher):
    """A timeout of the operating system does not end a read of Python's TLS, or of amqp within a frame."""
    made = []
    settimeout = socket.socket.settimeout

    def note(one: socket.socket, value: float | None) -> None:
        made.append(value)
        settimeout(one, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "settimeout", note)
        proxied.begin()
    # Timeouts that remain set after each wait.
    assert made[-1] == TIMEOUT


def test_connection_closed_for_lack_of_heartbeats_is_replaced(rabbitmq: RabbitMQ):
    with ProxiedPublisher(rabbitmq, broker_transport_options={"heartbeat": 1}) as proxied:
        proxied.begin()
        listing = ("-q", "list_connections", "pid")
        wait_for(lambda: not rabbitmq.run(rabbitmq.control, *listing).stdout.strip(), PATIENCE, "no connection")
        proxied.publisher.ready()
        assert proxied.send() == ACCEPTED
        assert proxied.proxy.counters["connections"] == 2


# --- Refused


def test_message_that_no_queue_takes_is_refused(proxied: ProxiedPublisher):
    proxied.begin()
    gone = proxied.prepare()
    with proxied.channel() as channel:
        channel.queue_delete(proxied.queue)
    sent = proxied.send(gone)
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)
    assert "no queue takes it" in sent.detail
    assert proxied.queue in sent.detail
    # The retry declares it again.
    assert proxied.send(gone) == ACCEPTED
    assert proxied.count() == 1


def test_broadcast_without_a_queue_is_accepted(rabbitmq: RabbitMQ):
    fanout = Exchange("fanout", type="fanout")
    with ProxiedPublisher(rabbitmq, task_queues=[Queue("fanout", fanout)]) as proxied:
        with proxied.channel() as channel:
            fanout(channel).declare()
        assert proxied.send(proxied.prepare(exchange="fanout", routing_key="")) == ACCEPTED


def test_message_that_cannot_be_encoded_is_refused(proxied: ProxiedPublisher):
    proxied.begin()
    sent = proxied.send(proxied.prepare(headers={"tenant": object()}))
    assert (sent.outcome, sent.broken) == (PublishOutcome.REFUSED, False)
    assert proxied.send() == ACCEPTED
    assert proxied.count() == 2


def test_message_is_refused_if_its_queue_has_other_arguments(proxied: ProxiedPublisher):
    with proxied.channel() as channel:
        Queue(proxied.queue, max_length=5)(channel).declare()
    sent = proxied.send()
    assert sent.outcome == PublishOutcome.REFUSED
    assert "inequivalent arg" in sent.detail


# --- Blocked


def test_blocked_broker_leaves_one_message_unknown_at_most(proxied: ProxiedPublisher):
    """Nothing is sent until the broker unblocks the connection."""

    def limit(megabytes: str) -> None:
        done = proxied.broker.run(proxied.broker.control, "set_vm_memory_high_watermark", "absolute", megabytes)
        assert done.returncode == 0, done.stderr

    proxied.begin()
    limit("1MB")
    try:
        outcomes, refusals = [], 0
        end = time.monotonic() + PATIENCE
        while refusals < 8 and time.monotonic() < end:
            try:
                proxied.publisher.ready()
                outcomes.append(proxied.send().outcome)
            except StoreUnavailable as exc:
                assert str(exc) == BLOCKED
                refusals += 1
                # An idle probe would get no answer and look like a broken connection.
                proxied.clock.advance(60)
        assert refusals == 8, outcomes
        assert outcomes.count("unknown") <= 1, outcomes
    finally:
        limit("512MB")

    def ready() -> bool:
        try:
            proxied.publisher.ready()
        except StoreUnavailable:
            return False
        return True

    wait_for(ready, PATIENCE, "the broker to take messages again")
    count = proxied.count()
    assert proxied.send() == ACCEPTED
    assert proxied.count() == count + 1
