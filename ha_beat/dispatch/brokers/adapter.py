"""Adapter for any kind of broker, and base of the adapters for certain kinds.

An adapter sends a message and reports its outcome. :meth:`BrokerAdapter.check` runs every step that can fail before the
message is written: if it raises, the message was certainly not sent. After the client has begun to write, only an
answer of the broker proves that the message was not accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError

from ha_beat.clock import Clock
from ha_beat.dispatch.messages.deferred import Arguments
from ha_beat.exception_text import exception_line
from ha_beat.reasons import PublishOutcome

#: Call that carries out a publish.
Publish = Callable[[Arguments], object]


@dataclass(frozen=True, slots=True)
class Sent:
    """Outcome of a send.

    ``detail`` is the error's text; an accepted message has one if some of several queues refused it. ``broken``: the
    connection is unusable, so the next message would fail too.
    """

    outcome: PublishOutcome
    detail: str = ""
    broken: bool = False


@dataclass(slots=True)
class Delivery:
    """Send of one message. ``sent`` is ``None`` until the outcome is known."""

    sent: Sent | None = None


class BrokerAdapter:
    """One connection to a broker of any kind that kombu supports."""

    #: True while the broker has asked clients to send no messages.
    blocked = False
    #: True if the next message needs another connection: this one failed, an answer may still arrive, or the broker
    #: refused a message, so that queues which were declared through this connection may be gone.
    must_be_replaced = False
    #: True if one failure left more than one message without an answer.
    lost_together = False

    def __init__(self, app: Celery, timeout: float) -> None:
        """``timeout`` bounds each wait, in seconds."""
        self._app = app
        self._timeout = timeout
        self._connection: Any = None

    def open(self) -> Any:
        """Connect, and return the channel.

        Raises:
            Exception: any exception of the client.
        """
        stock = self._app.connection_for_write()
        self._connection = connection = stock.clone(
            connect_timeout=min(stock.connect_timeout or self._timeout, self._timeout),
            transport_options={**(stock.transport_options or {}), **self._options()},
        )
        self._before_connect(connection)
        # Try each host once, without a pause: the main loop waits.
        connection.ensure_connection(max_retries=max(len(connection.alt) - 1, 0))
        self._after_connect()
        # Otherwise kombu would open the channel with the first message, on another connection.
        return connection.default_channel

    def _options(self) -> dict[str, Any]:
        """Return the adapter's own transport options."""
        return {}

    def _before_connect(self, connection: Any) -> None:
        """Hook for subclasses."""

    def _after_connect(self) -> None:
        """Hook for subclasses."""

    @property
    def alive(self) -> bool:
        return self._connection is not None and bool(self._connection.connected)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(socket_timeout=self._timeout)

    def check(self) -> bool:
        """Check, without a round trip, that the connection is usable. Return True if the broker has sent something.

        Raises:
            Exception: the connection is unusable.
        """
        return False

    def probe(self) -> None:
        """Make one round trip to the broker.

        Raises:
            Exception: the broker did not answer.
        """
        self._connection.channel().close()

    def is_message_error(self, exc: Exception) -> bool:
        """True if the error concerns this message only, so that another message may succeed."""
        if isinstance(exc, self._connection.channel_errors):
            return True
        return not isinstance(exc, (*self._connection.connection_errors, KombuError, OSError))

    def unanswered(self) -> int:
        """Return how many messages were sent and have no answer yet."""
        return 0

    def goes_alone(self, _: Arguments) -> bool:
        """True if the message must not be sent while others have no answer, and the others must wait for its answer."""
        return True

    def put(self, publish: Publish, arguments: Arguments, delivery: Delivery) -> None:
        """Send the message. An adapter that does not wait for the broker's answer waits in :meth:`wait_for_answers`.

        Raises:
            StoreUnavailable: nothing was written.
        """
        self._answer(delivery, self._put(publish, arguments))

    def wait_for_answers(self, answered: Callable[[], None], clock: Clock) -> None:
        """Wait until each message has an answer, or no answer can come any more. Call ``answered`` after each one."""

    def _answer(self, delivery: Delivery, sent: Sent) -> None:
        delivery.sent = sent
        self.must_be_replaced |= sent.broken or sent.outcome is PublishOutcome.REFUSED

    def _put(self, publish: Publish, arguments: Arguments) -> Sent:
        """Send the message and wait for the broker's answer. Raises like :meth:`put`."""
        try:
            publish(arguments)
        except Exception as exc:
            answered = isinstance(exc, self._connection.channel_errors)
            return Sent(PublishOutcome.UNKNOWN, exception_line(exc), broken=not answered)
        return Sent(PublishOutcome.ACCEPTED)
