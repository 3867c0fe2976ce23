"""Adapter for AMQP with publisher confirms. It sends many messages before it waits for their answers.

The broker answers each message by its number on the channel. If the broker closes the channel instead, it does not name
the message at fault, and the outcome of every unanswered message is unknown. A message that may cause this is therefore
sent alone (:meth:`AmqpAdapter.goes_alone`).
"""

from __future__ import annotations

import select
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache
from types import BuiltinFunctionType
from typing import Any

from amqp.exceptions import FrameSyntaxError
from celery import Celery

from ha_beat.clock import Clock
from ha_beat.dispatch.brokers.adapter import BrokerAdapter, Delivery, Publish, Sent
from ha_beat.dispatch.brokers.amqp_answers import UnansweredMessages, route_of
from ha_beat.dispatch.messages.deferred import Arguments
from ha_beat.exception_text import exception_line
from ha_beat.headers import HEADER
from ha_beat.reasons import PublishOutcome
from ha_beat.store.name_resolution import connect_by_address

#: Types of exchanges that find the queues of a message when they receive it.
_ROUTED_ON_RECEIPT = frozenset({"direct", "topic", "headers"})

#: Properties that no broker checks. The longest expiration (in ms) and the largest body that every broker takes.
_UNCHECKED = frozenset({"correlation_id", "reply_to", "delivery_mode", "priority", "expiration"})
_LONGEST_EXPIRATION, _LARGEST_BODY = 2**32 - 1, 1_000_000


@cache
def _with_bounded_names(transport: Any) -> Any:
    """Return kombu's transport class with a time limit on the resolution of the broker's name."""

    def socket_of(*arguments: Any, **options: Any) -> Any:
        made = transport.Connection.Transport(*arguments, **options)
        connect = made._connect  # noqa: SLF001 -- it resolves the name
        made._connect = lambda name, port, timeout: connect_by_address(  # noqa: SLF001
            name, timeout, lambda address: connect(address, port, timeout)
        )
        return made

    bounded = type(transport.Connection.__name__, (transport.Connection,), {"Transport": socket_of})
    return type(transport.__name__, (transport,), {"Connection": bounded})


class AmqpAdapter(BrokerAdapter):
    """One AMQP connection with one channel."""

    _amqp: Any = None

    def __init__(self, app: Celery, timeout: float) -> None:
        super().__init__(app, timeout)
        self._unanswered = UnansweredMessages(self._answer)
        #: Check that is True if the broker has certainly sent nothing since the last read.
        self._silent: Callable[[], bool] = lambda: False

    def _before_connect(self, connection: Any) -> None:
        stock = connection.get_transport_cls
        connection.get_transport_cls = lambda: _with_bounded_names(stock())

    def open(self) -> Any:
        channel = super().open()
        channel.confirm_select()
        channel.events["basic_ack"].add(self._unanswered.acked)
        channel.events["basic_nack"].add(self._unanswered.nacked)
        channel.events["basic_return"].add(self._unanswered.returned)
        return channel

    def _options(self) -> dict[str, Any]:
        return {
            # With this option, amqp would wait after each message.
            "confirm_publish": False,
            "read_timeout": self._timeout,
            "write_timeout": self._timeout,
            "on_blocked": self._block,
            "on_unblocked": self._unblock,
        }

    def _after_connect(self) -> None:
        # kombu's property would reconnect a lost connection.
        self._amqp = self._connection.connection
        # Without properties, amqp does not check before each message if the broker is blocked; `check` does.
        self._amqp.client_properties = {}
        # The two timeouts above are socket options. TLS ignores them, and so does amqp within a frame.
        self._amqp.sock.settimeout(self._timeout)
        self._silent = _silence_of(self._amqp.sock)

    def close(self) -> None:
        self._fail(ConnectionError("the connection was closed"))
        super().close()

    def unanswered(self) -> int:
        return len(self._unanswered)

    def check(self) -> bool:
        if self._silent():
            return False
        amqp = self._amqp
        before = amqp.bytes_recv
        try:
            with suppress(TimeoutError):
                while True:
                    amqp.drain_events(timeout=0)
        except Exception as exc:
            self._fail(exc)
            raise
        return bool(amqp.bytes_recv != before)

    def goes_alone(self, arguments: Arguments) -> bool:
        """True if the broker might close the channel because of this message."""
        headers, properties = arguments["headers"], arguments["properties"]
        return (
            HEADER not in headers
            or bool(arguments.get("immediate"))
            or route_of(arguments) not in self._unanswered.known_routes  # guard: amqp-unknown-route-alone
            or not properties.keys() <= _UNCHECKED
            or not 0 <= int(properties.get("expiration") or 0) <= _LONGEST_EXPIRATION
            or len(arguments["body"]) > _LARGEST_BODY
            or _are_checked(tuple(headers))
        )

    def put(self, publish: Publish, arguments: Arguments, delivery: Delivery) -> None:
        arguments = {**arguments, "timeout": self._timeout}
        if self._must_be_routed(arguments["exchange"]):
            arguments["mandatory"] = True
        written = self._amqp.bytes_sent
        self._unanswered.begin(delivery, arguments)
        try:
            publish(arguments)
        except (FrameSyntaxError, struct.error, TypeError, ValueError, RecursionError) as exc:
            # The message cannot be encoded. amqp encodes all frames before it writes the first.
            if 0 < written == self._amqp.bytes_sent:
                self._answer(self._unanswered.pop_last(), Sent(PublishOutcome.REFUSED, exception_line(exc)))
            else:
                self._fail(exc)
        except Exception as exc:
            self._fail(exc)

    def wait_for_answers(self, answered: Callable[[], None], clock: Clock) -> None:
        try:
            ends_at = clock.elapsed() + self._timeout
            while waiting := len(self._unanswered):
                # Frame by frame, because amqp would wait as long as the broker sends heartbeats.
                self._amqp.blocking_read(max(ends_at - clock.elapsed(), 0.0))
                if len(self._unanswered) < waiting:
                    # The timeout applies to each answer.
                    ends_at = clock.elapsed() + self._timeout
                    answered()
        except Exception as exc:
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        """Give every unanswered message the outcome that follows from an error, and replace the connection."""
        of_channel = self._connection is not None and isinstance(exc, self._connection.channel_errors)
        self.lost_together |= len(self._unanswered) > 1
        self._unanswered.failed(exc, of_channel=of_channel)
        self.must_be_replaced = True

    def _must_be_routed(self, exchange: str) -> bool:
        """True if the message is refused when no queue takes it.

        A fanout exchange needs no queue. The type of an exchange that Celery does not declare is unknown; an exchange
        that delays messages reports each of them as unroutable.
        """
        if not exchange:
            return True
        known = [queue.exchange for queue in self._app.amqp.queues.values()]
        return any(found.name == exchange and found.type in _ROUTED_ON_RECEIPT for found in known)

    def _block(self, *_: Any) -> None:
        self.blocked = True

    def _unblock(self, *_: Any) -> None:
        self.blocked = False


def _silence_of(sock: Any) -> Callable[[], bool]:
    """Return a check that is True if nothing can be read from the socket, neither data nor its end.

    The check costs a tenth of an attempt to read. With TLS, which reads ahead, and with gevent's ``poll``, which may
    miss something, it is always False.
    """
    poll: Any = getattr(select, "poll", None)
    if isinstance(sock, ssl.SSLSocket) or not isinstance(poll, BuiltinFunctionType):
        return lambda: False
    polled = poll()
    polled.register(sock, select.POLLIN)
    return lambda: not polled.poll(0)


@lru_cache(maxsize=100)
def _are_checked(headers: tuple[object, ...]) -> bool:
    """True if a broker interprets one of these headers, or one is no valid name."""
    return any(not isinstance(name, str) or name in {"CC", "BCC"} or name.startswith("x-") for name in headers)
