"""How a message goes out, by the kind of broker; and what is certain when it does not.

Whatever can fail before the message is written is tried by :meth:`Carrier.check`: what fails there was certainly not
sent. Once the client has begun to write, only the broker's own answer says that nothing was done.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from amqp.exceptions import FrameSyntaxError, MessageNacked
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import ResponseError

from ha_beat.dispatch.broker import BrokerLink
from ha_beat.dispatch.capture import captured
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome
from ha_beat.store.redis_errors import as_store_error, code_of, in_words

#: What kombu's producer is about to publish, and the call that publishes it.
Arguments = dict[str, Any]
Publish = Callable[[Arguments], object]

#: Of exchanges of these types the broker knows at once that no queue takes a message.
_ROUTED_AT_ONCE = frozenset({"direct", "topic", "headers"})


@dataclass(frozen=True, slots=True)
class Sent:
    """What is known of a message after it was sent.

    ``accepted`` with a ``detail``: not by each of several queues. ``broken``: the
    connection it went by is of no use any more, and the next message would fare no better.
    """

    outcome: PublishOutcome
    detail: str = ""
    broken: bool = False


def worded(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}".rstrip(": ")


class Carrier:
    """One connection to a broker of which no more is known than what kombu says of it."""

    #: Whether the broker has asked for no more messages.
    blocked = False
    #: Whether what was written last may still be answered: the connection is good for nothing else.
    owed = False

    def __init__(self, app: Celery, timeout: float) -> None:
        """``timeout`` bounds each wait, in seconds."""
        self._app = app
        self._timeout = timeout
        self._connection: Any = None

    def open(self) -> Any:
        """Connect; the channel.

        Raises:
            Exception: whatever the client raises.
        """
        stock = self._app.connection_for_write()
        self._connection = connection = stock.clone(
            connect_timeout=min(stock.connect_timeout or self._timeout, self._timeout),
            transport_options={**(stock.transport_options or {}), **self._options()},
        )
        # Each of the hosts once, and without the pause between two rounds: the main loop is waiting.
        connection.ensure_connection(max_retries=max(len(connection.alt) - 1, 0))
        self._connected()
        # kombu would open it with the first message, and connect anew for it.
        return connection.default_channel

    def _options(self) -> dict[str, Any]:
        return {}

    def _connected(self) -> None:
        """The connection has just been made."""

    @property
    def alive(self) -> bool:
        return self._connection is not None and bool(self._connection.connected)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(socket_timeout=self._timeout)

    def check(self) -> bool:
        """Find out without a round trip whether the connection is of use; True where the broker has said something.

        Raises:
            Exception: it is not, and nothing more can be sent.
        """
        return False

    def probe(self) -> None:
        """Have the broker answer.

        Raises:
            Exception: it does not.
        """
        self._connection.channel().close()

    def entrys_own(self, exc: Exception) -> bool:
        """Whether it failed for the one message's sake, so that another might go out."""
        errors = self._connection
        if isinstance(exc, errors.channel_errors):
            return True
        return not isinstance(exc, (*errors.connection_errors, KombuError, OSError))

    def put(self, publish: Publish, arguments: Arguments) -> Sent:
        """Write the message and wait for the broker's answer.

        Raises:
            StoreUnavailable: nothing was written.
        """
        try:
            publish(arguments)
        except Exception as exc:
            answered = isinstance(exc, self._connection.channel_errors)
            return Sent(PublishOutcome.UNKNOWN, worded(exc), broken=not answered)
        return Sent(PublishOutcome.ACCEPTED)


class AmqpCarrier(Carrier):
    """One message at a time, confirmed by the broker."""

    _amqp: Any = None
    _returned = ""

    def open(self) -> Any:
        channel = super().open()
        # amqp would ask for confirms with the first message, and the failure of that look like the message's.
        channel.confirm_select()
        channel._confirm_selected = True  # noqa: SLF001 -- else it asks a second time
        channel.events["basic_return"].add(self._return)
        return channel

    def _options(self) -> dict[str, Any]:
        return {
            "confirm_publish": True,
            "read_timeout": self._timeout,
            "write_timeout": self._timeout,
            "on_blocked": self._block,
            "on_unblocked": self._unblock,
        }

    def _connected(self) -> None:
        # Not to be asked for again: kombu would connect anew where it is gone.
        self._amqp = self._connection.connection
        # The two timeouts above are the operating system's, which TLS does not heed, nor amqp in the middle of a frame.
        self._amqp.sock.settimeout(self._timeout)

    def check(self) -> bool:
        amqp = self._amqp
        before = amqp.bytes_recv
        with suppress(TimeoutError):
            while True:
                amqp.drain_events(timeout=0)
        return bool(amqp.bytes_recv != before)

    def put(self, publish: Publish, arguments: Arguments) -> Sent:
        arguments = {**arguments, "timeout": self._timeout, "confirm_timeout": self._timeout}
        if self._must_be_routed(arguments["exchange"]):
            arguments["mandatory"] = True
        amqp, self._returned, self.owed = self._amqp, "", True
        written = amqp.bytes_sent
        try:
            publish(arguments)
        except MessageNacked as exc:
            # One of several queues may have taken it.
            self.owed = False
            return Sent(PublishOutcome.UNKNOWN, worded(exc))
        except self._connection.channel_errors as exc:
            return Sent(PublishOutcome.REFUSED, worded(exc))
        except (FrameSyntaxError, struct.error, TypeError, ValueError) as exc:
            # It can't be put into frames, and those are made before they are written.
            unwritten = 0 < written == amqp.bytes_sent
            return (
                Sent(PublishOutcome.REFUSED, worded(exc))
                if unwritten
                else Sent(PublishOutcome.UNKNOWN, worded(exc), broken=True)
            )
        except Exception as exc:
            return Sent(PublishOutcome.UNKNOWN, worded(exc), broken=True)
        self.owed = False
        return Sent(PublishOutcome.REFUSED, self._returned) if self._returned else Sent(PublishOutcome.ACCEPTED)

    def _must_be_routed(self, exchange: str) -> bool:
        """Whether it is an error that no queue takes the message, and certain then that none has it.

        To a fanout exchange nobody need listen. Of one that Celery does not declare the type is not known: one that
        delays messages says of each that no queue takes it.
        """
        if not exchange:
            return True
        known = [queue.exchange for queue in self._app.amqp.queues.values()]
        return any(found.name == exchange and found.type in _ROUTED_AT_ONCE for found in known)

    def _return(self, exc: Exception, exchange: str, routing_key: str, _: Any) -> None:
        self._returned = f"no queue takes it (exchange {exchange!r}, routing key {routing_key!r}): {exc}"

    def _block(self, *_: Any) -> None:
        self.blocked = True

    def _unblock(self, *_: Any) -> None:
        self.blocked = False


class SqsCarrier(Carrier):
    """Amazon's client would send a message up to five times by itself, and more than one of them may arrive."""

    def _options(self) -> dict[str, Any]:
        given = self._app.connection_for_write().transport_options or {}
        calm = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"total_max_attempts": 1},
        }
        return {"client-config": {**(given.get("client-config") or {}), **calm}}

    def entrys_own(self, exc: Exception) -> bool:
        # kombu counts all of Amazon's errors among those of a channel.
        return isinstance(exc, _amazons().ClientError) and 400 <= _status(exc) < 500

    def put(self, publish: Publish, arguments: Arguments) -> Sent:
        errors = _amazons()
        try:
            publish(arguments)
        except (errors.EndpointConnectionError, errors.ConnectTimeoutError) as exc:
            # Of the one try that is made.
            raise StoreUnavailable(worded(exc), acted=False) from exc
        except Exception as exc:
            if self.entrys_own(exc):
                return Sent(PublishOutcome.REFUSED, worded(exc))
            return Sent(PublishOutcome.UNKNOWN, worded(exc), broken=True)
        return Sent(PublishOutcome.ACCEPTED)


def _amazons() -> Any:
    """The errors of Amazon's client, which is there where the broker is SQS."""
    import botocore.exceptions

    return botocore.exceptions


def _status(exc: Any) -> int:
    """Of the answer over HTTP."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


class RedisCarrier(Carrier):
    """All writes of one message at once, however many queues it goes to."""

    def __init__(self, app: Celery, timeout: float) -> None:
        super().__init__(app, timeout)
        self._link: BrokerLink | None = BrokerLink(app, timeout)

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
        # Takes a connection out of the pool, which makes sure that it is connected; the command takes it again.
        redis.Redis(connection_pool=self._open_link.channel().pool, single_connection_client=True).close()
        return False

    def probe(self) -> None:
        self._open_link.client().ping()

    def entrys_own(self, exc: Exception) -> bool:
        if isinstance(exc, ResponseError):
            return code_of(exc) in ("", "NOPERM")
        return super().entrys_own(exc)

    def put(self, publish: Publish, arguments: Arguments) -> Sent:
        link = self._open_link
        try:
            with captured(link.channel()) as commands:
                publish(arguments)
            self.check()
        except Exception as exc:
            return self._nothing_done(exc)
        if not commands:
            return Sent(PublishOutcome.REFUSED, "no queue is bound to its exchange")
        try:
            pipe: Any  # without types in redis-py
            with link.client().pipeline(transaction=len(commands) > 1) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies = pipe.execute(raise_on_error=False)
        except Exception as exc:
            error = as_store_error(exc)
            if isinstance(error, StoreUnavailable) and error.acted:
                return Sent(PublishOutcome.UNKNOWN, str(error), broken=True)
            return self._nothing_done(exc)
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if len(failed) == len(replies):
            return self._nothing_done(failed[0])
        # A transaction does not roll back: some queue has it.
        return Sent(PublishOutcome.ACCEPTED, f"not every queue took it: {in_words(failed[0])}" if failed else "")

    def _nothing_done(self, exc: Exception) -> Sent:
        if self.entrys_own(exc):
            return Sent(PublishOutcome.REFUSED, in_words(exc))
        raise StoreUnavailable(in_words(exc), acted=False) from exc
