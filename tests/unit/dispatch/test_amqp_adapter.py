"""Answers of an AMQP broker to messages that were sent together. The connection is a fake."""

import socket
import ssl
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import ChannelError
from celery import Celery

from ha_beat.dispatch.brokers import amqp_adapter, amqp_answers
from ha_beat.dispatch.brokers.adapter import Delivery, Sent
from ha_beat.dispatch.brokers.amqp_adapter import AmqpAdapter
from ha_beat.headers import HEADER
from ha_beat.reasons import PublishOutcome
from ha_beat.testing import SettableClock

ACCEPTED, NACKED = Sent(PublishOutcome.ACCEPTED), Sent(PublishOutcome.UNKNOWN, "the broker did not accept it")
NOT_FOUND = ChannelError("no exchange", (60, 40), "404")
APP = Celery("adapter", set_as_current=False)


def message(publish_id: str = "1", **changes: Any) -> dict[str, Any]:
    headers = {HEADER: {"publish": publish_id}}
    given = {"headers": headers, "properties": {"delivery_mode": 2}, "body": "body", "exchange": "", "routing_key": "q"}
    return {**given, **changes}


class Channel(AmqpAdapter):
    """Adapter on a connection that delivers the test's events, which are calls, and is then silent."""

    def __init__(self) -> None:
        super().__init__(APP, 1.0)
        self.events: list[Callable[[], object]] = []
        self._connection = SimpleNamespace(channel_errors=(ChannelError,), collect=lambda **_: None)
        self.clock = SettableClock()
        read = self.next_event
        self._amqp = SimpleNamespace(bytes_sent=1, bytes_recv=0, drain_events=read, blocking_read=read)

    def next_event(self, timeout: float) -> None:
        assert timeout >= 0
        if not self.events:
            raise TimeoutError
        self._amqp.bytes_recv += 1
        self.events.pop(0)()

    def fails(self, exc: Exception) -> Callable[[], object]:
        def fail() -> None:
            raise exc

        return fail

    def acks(self, number: int, *, multiple: bool = False) -> Callable[[], object]:
        return lambda: self._unanswered.acked(number, multiple)

    def nacks(self, number: int) -> Callable[[], object]:
        return lambda: self._unanswered.nacked(number, multiple=False)

    def returns(self, publish_id: str) -> Callable[[], object]:
        returned = SimpleNamespace(headers={HEADER: {"publish": publish_id}})
        return lambda: self._unanswered.returned(ChannelError("no route"), "", "q", returned)

    def send(self, count: int = 1) -> list[Delivery]:
        """Send messages, with publish ids from 1."""
        return [self.send_one(message(str(number))) for number in range(1, count + 1)]

    def send_one(self, arguments: dict[str, Any], error: Exception | None = None) -> Delivery:
        def publish(_: Any) -> None:
            if error is not None:
                raise error
            self._amqp.bytes_sent += 1

        delivery = Delivery()
        self.put(publish, arguments, delivery)
        return delivery

    def outcomes_after(self, deliveries: list[Delivery], *events: Callable[[], object]) -> list[PublishOutcome]:
        self.events = list(events)
        self.wait_for_answers(lambda: None, self.clock)
        return outcomes_of(deliveries)


@pytest.fixture
def channel() -> Channel:
    return Channel()


def outcomes_of(deliveries: list[Delivery]) -> list[PublishOutcome]:
    return [delivery.sent.outcome for delivery in deliveries if delivery.sent is not None]


def outcomes(letters: str) -> list[PublishOutcome]:
    """Return outcomes by their first letters."""
    return [{one.value[0]: one for one in PublishOutcome if one is not PublishOutcome.UNSENT}[each] for each in letters]


def test_confirmation_answers_one_message_or_all_up_to_it(channel: Channel):
    assert channel.outcomes_after(channel.send(4), channel.acks(2), channel.acks(4, multiple=True)) == outcomes("aaaa")
    assert (channel.unanswered(), channel.must_be_replaced) == (0, False)


def test_message_without_a_confirmation_is_unknown(channel: Channel):
    """Later messages use another connection, where a late answer cannot be taken for theirs."""
    sent = channel.send(4)
    assert channel.outcomes_after(sent, channel.acks(3), channel.acks(1)) == outcomes("auau")
    assert [one.sent.broken for one in sent if one.sent] == [False, True, False, True]
    assert channel.must_be_replaced


def test_heartbeats_do_not_prolong_the_wait_for_an_answer(channel: Channel):
    """A broker that is short of memory sends them."""
    limits: list[float] = []

    def heartbeat(timeout: float) -> None:
        limits.append(timeout)
        if timeout == 0.0 or len(limits) > 9:
            raise TimeoutError
        channel.clock.advance(0.4)

    channel._amqp.blocking_read = heartbeat
    assert channel.outcomes_after(channel.send(2)) == outcomes("uu")
    assert limits == pytest.approx([1.0, 0.6, 0.2, 0.0])


def test_nack_concerns_its_message_only(channel: Channel):
    sent = channel.send(3)
    channel.outcomes_after(sent, channel.nacks(2), channel.acks(3, multiple=True))
    assert [one.sent for one in sent] == [ACCEPTED, NACKED, ACCEPTED]
    assert not channel.must_be_replaced


def test_returned_message_is_refused_and_no_other(channel: Channel):
    """The broker acknowledges a returned message later, perhaps together with others."""
    sent = channel.send(4)
    events = [channel.acks(1), channel.returns("3"), channel.acks(2), channel.acks(4, multiple=True)]
    assert channel.outcomes_after(sent, *events) == outcomes("aara")
    assert sent[2].sent is not None
    assert "no queue takes it" in sent[2].sent.detail
    assert channel.must_be_replaced


@pytest.mark.parametrize("where", ["check", "wait"])
@pytest.mark.parametrize(("acked", "expected"), [(2, "aar"), (1, "auu")])
def test_closed_channel_refuses_a_message_only_if_it_is_the_last(
    channel: Channel, where: str, acked: int, expected: str
):
    """The broker does not name the message at fault."""
    sent = channel.send(3)
    channel.events = [channel.acks(acked, multiple=True), channel.fails(NOT_FOUND)]
    if where == "check":
        with pytest.raises(ChannelError):
            channel.check()
    else:
        channel.wait_for_answers(lambda: None, channel.clock)
    assert outcomes_of(sent) == outcomes(expected)
    assert (channel.must_be_replaced, channel.lost_together) == (True, acked == 1)


def test_lost_connection_leaves_unanswered_messages_unknown(channel: Channel):
    sent = channel.send(3)
    assert channel.outcomes_after(sent, channel.acks(1), channel.fails(OSError("cut"))) == outcomes("auu")
    assert sent[1].sent == Sent(PublishOutcome.UNKNOWN, "OSError: cut", broken=True)


def test_closed_connection_leaves_unanswered_messages_unknown(channel: Channel):
    sent = channel.send(2)
    channel.close()
    assert outcomes_of(sent) == outcomes("uu")


@pytest.mark.parametrize("error", [TypeError("object"), RecursionError()], ids=repr)
def test_message_that_cannot_be_encoded_takes_no_number(channel: Channel, error: Exception):
    first, wrong, third = channel.send()[0], channel.send_one(message(), error), channel.send()[0]
    assert channel.outcomes_after([first, wrong, third], channel.acks(1), channel.acks(2)) == outcomes("ara")
    assert channel.must_be_replaced


def test_failed_write_leaves_every_message_unknown(channel: Channel):
    sent = [*channel.send(2), channel.send_one(message(), OSError("broken pipe"))]
    assert outcomes_of(sent) == outcomes("uuu")


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ({}, False),
        ({"properties": {"expiration": "60000", "priority": 3}}, False),
        ({"headers": {}}, True),
        ({"exchange": "orders"}, True),
        ({"routing_key": "other"}, True),
        ({"properties": {"user_id": "other"}}, True),
        ({"properties": {"expiration": str(2**32)}}, True),
        ({"body": "x" * 2_000_000}, True),
        ({"headers": {HEADER: {}, "CC": "text"}}, True),
        ({"headers": {HEADER: {}, "x-delay": "text"}}, True),
        ({"headers": {HEADER: {}, 1: "no header"}}, True),
        ({"immediate": True}, True),
    ],
    ids=str,
)
def test_message_that_may_close_the_channel_goes_alone(channel: Channel, changes: dict[str, Any], alone: bool):
    assert channel.goes_alone(message())
    channel.outcomes_after(channel.send(), channel.acks(1))
    assert channel.goes_alone(message(**changes)) is alone


def test_routes_of_a_key_per_message_are_not_kept_for_ever(channel: Channel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(amqp_answers, "_MOST_ROUTES", 3)
    for number in range(1, 6):
        channel.outcomes_after([channel.send_one(message(routing_key=f"key {number}"))], channel.acks(number))
    assert channel._unanswered.known_routes == {("", "key 4"), ("", "key 5")}


def test_silence_ends_with_data_and_with_the_end_of_the_connection():
    ours, theirs = socket.socketpair()
    with ours:
        silent = amqp_adapter._silence_of(ours)
        with theirs:
            assert silent()
            theirs.send(b"x")
            assert not silent()
            ours.recv(1)
            assert silent()
        assert not silent()


def test_tls_connection_is_never_known_to_be_silent():
    """Data that was decrypted ahead has left the socket."""
    ours, theirs = socket.socketpair()
    with (
        theirs,
        ssl.create_default_context().wrap_socket(ours, server_hostname="x", do_handshake_on_connect=False) as tls,
    ):
        assert not amqp_adapter._silence_of(tls)()
