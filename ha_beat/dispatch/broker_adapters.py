"""Adapters that send one message and report its outcome, by kind of broker.

:meth:`BrokerAdapter.check` runs every step that can fail before the message is written: if it raises, the message was
certainly not sent. After the client has begun to write, only an answer of the broker proves that nothing was done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import ResponseError

from ha_beat.clock import Clock
from ha_beat.dispatch.broker import BrokerLink
from ha_beat.dispatch.capture import captured
from ha_beat.errors import StoreUnavailable
from ha_beat.exception_text import exception_line
from ha_beat.reasons import PublishOutcome
from ha_beat.store.redis_errors import as_store_error, code_of, in_words

#: Arguments of a publish by kombu's producer, and the call that carries it out.
Arguments = dict[str, Any]
Publish = Callable[[Arguments], object]


@dataclass(frozen=True, slots=True)
class Sent:
    """Outcome of a send.

    ``detail`` is the error's text; with ``accepted`` it means that some of several queues refused the message.
    ``broken`` means that the connection is unusable, so that the next message would fail too.
    """

    outcome: PublishOutcome
    detail: str = ""
    broken: bool = False


@dataclass(slots=True)
class Delivery:
    """Send of one message. ``sent`` is its outcome, once that is known."""

    sent: Sent | None = None


class BrokerAdapter:
    """One connection to a broker of any kind that kombu supports."""

    #: True while the broker asks for no more messages.
    blocked = False
    #: True if another connection must take the next message: this one failed, an answer may still arrive, or queues
    #: that were declared through it may be gone, because a message was refused.
    worn = False
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
        self._prepare(connection)
        # Each host once, and without a pause: the main loop waits.
        connection.ensure_connection(max_retries=max(len(connection.alt) - 1, 0))
        self._connected()
        # kombu would open it with the first message, on another connection.
        return connection.default_channel

    def _options(self) -> dict[str, Any]:
        return {}

    def _prepare(self, connection: Any) -> None:
        """Run before the first connect; a hook for subclasses."""

    def _connected(self) -> None:
        """Run after each connect; a hook for subclasses."""

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
        errors = self._connection
        if isinstance(exc, errors.channel_errors):
            return True
        return not isinstance(exc, (*errors.connection_errors, KombuError, OSError))

    def unanswered(self) -> int:
        """Return how many messages were sent and have no answer yet."""
        return 0

    def goes_alone(self, _: Arguments) -> bool:
        """True if the message must not be sent while others have no answer, nor others until it has its own."""
        return True

    def put(self, publish: Publish, arguments: Arguments, delivery: Delivery) -> None:
        """Send the message. If the broker's answer does not come at once, :meth:`settle` waits for it.

        Raises:
            StoreUnavailable: nothing was written.
        """
        self._answer(delivery, self._put(publish, arguments))

    def settle(self, progress: Callable[[], None], clock: Clock) -> None:
        """Wait until each message has an answer, or none can be expected. Call ``progress`` after each answer."""

    def _answer(self, delivery: Delivery, sent: Sent) -> None:
        delivery.sent = sent
        self.worn |= sent.broken or sent.outcome is PublishOutcome.REFUSED

    def _put(self, publish: Publish, arguments: Arguments) -> Sent:
        """Send the message and wait for the broker's answer. Raises like :meth:`put`."""
        try:
            publish(arguments)
        except Exception as exc:
            answered = isinstance(exc, self._connection.channel_errors)
            return Sent(PublishOutcome.UNKNOWN, exception_line(exc), broken=not answered)
        return Sent(PublishOutcome.ACCEPTED)


class SqsAdapter(BrokerAdapter):
    """SQS without the retries of Amazon's client, which may deliver a message more than once."""

    def _options(self) -> dict[str, Any]:
        given = self._app.connection_for_write().transport_options or {}
        no_retries = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"total_max_attempts": 1},
        }
        return {"client-config": {**(given.get("client-config") or {}), **no_retries}}

    def is_message_error(self, exc: Exception) -> bool:
        # kombu counts all errors of Amazon's client as channel errors.
        return isinstance(exc, _botocore_errors().ClientError) and 400 <= _status(exc) < 500

    def _put(self, publish: Publish, arguments: Arguments) -> Sent:
        errors = _botocore_errors()
        try:
            publish(arguments)
        except (errors.EndpointConnectionError, errors.ConnectTimeoutError) as exc:
            # The only attempt did not connect.
            raise StoreUnavailable(exception_line(exc), acted=False) from exc
        except Exception as exc:
            if self.is_message_error(exc):
                return Sent(PublishOutcome.REFUSED, exception_line(exc))
            return Sent(PublishOutcome.UNKNOWN, exception_line(exc), broken=True)
        return Sent(PublishOutcome.ACCEPTED)


def _botocore_errors() -> Any:
    """Return the exceptions of Amazon's client, which is installed if the broker is SQS."""
    import botocore.exceptions

    return botocore.exceptions


def _status(exc: Any) -> int:
    """Return the HTTP status of an error answer, or 0."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


class RedisAdapter(BrokerAdapter):
    """Redis, with all writes of one message in one transaction."""

    def __init__(self, app: Celery, timeout: float) -> None:
        super().__init__(app, timeout)
        self._link: BrokerLink | None = BrokerLink(app, timeout, failover=True)

    @property
    def _open_link(self) -> BrokerLink:
        if self._link is None:
            raise StoreUnavailable("the connection is closed", acted=False)
        return self._link

    def open(self) -> Any:
        channel = self._open_link.channel()
        self._connection = channel.connection.client
        return channel

    @property
    def alive(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        link, self._link, self._connection = self._link, None, None
        if link is not None:
            with suppress(Exception):
                link.channel().pool.disconnect()

    def check(self) -> bool:
        # Taking a connection from the pool verifies it; the next command takes the same one.
        redis.Redis(connection_pool=self._open_link.channel().pool, single_connection_client=True).close()
        return False

    def probe(self) -> None:
        self._open_link.client().ping()

    def is_message_error(self, exc: Exception) -> bool:
        if isinstance(exc, ResponseError):
            return code_of(exc) in ("", "NOPERM")
        return super().is_message_error(exc)

    def _put(self, publish: Publish, arguments: Arguments) -> Sent:
        link = self._open_link
        try:
            with captured(link.channel()) as commands:
                publish(arguments)
            self.check()
        except Exception as exc:
            return self._not_sent(exc)
        if not commands:
            return Sent(PublishOutcome.REFUSED, "no queue is bound to its exchange")
        try:
            pipe: Any  # untyped in redis-py
            with link.client().pipeline(transaction=len(commands) > 1) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies = pipe.execute(raise_on_error=False)
        except Exception as exc:
            error = as_store_error(exc)
            if isinstance(error, StoreUnavailable) and error.acted:
                return Sent(PublishOutcome.UNKNOWN, str(error), broken=True)
            return self._not_sent(exc)
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if len(failed) == len(replies):
            return self._not_sent(failed[0])
        # A transaction does not roll back: at least one queue has the message.
        return Sent(PublishOutcome.ACCEPTED, f"not every queue took it: {in_words(failed[0])}" if failed else "")

    def _not_sent(self, exc: Exception) -> Sent:
        if self.is_message_error(exc):
            return Sent(PublishOutcome.REFUSED, in_words(exc))
        unavailable = StoreUnavailable(in_words(exc), acted=False)
        unavailable.same_for_all = as_store_error(exc).same_for_all
        raise unavailable from exc
