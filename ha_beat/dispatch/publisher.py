"""Publishes to any broker that kombu knows, one confirmed message at a time."""

from __future__ import annotations

import inspect
import select
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from amqp.exceptions import MessageNacked
from celery import Celery
from celery.beat import ScheduleEntry
from kombu import Connection, Producer
from redis.exceptions import ResponseError

from ha_beat.clock import Clock
from ha_beat.dispatch.header import HEADER
from ha_beat.dispatch.message import DeclaringOnce, NothingPublished, publish
from ha_beat.errors import StoreUnavailable
from ha_beat.lease import new_token

#: A connection idle for so many seconds is tried before a message is trusted to it.
_IDLE = 5.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What is known of a message after it was sent.

    ``refused``: certainly not accepted. ``broken``: the connection it went by is of no use any more, and the next
    message would fare no better.
    """

    outcome: Literal["accepted", "refused", "unknown"]
    why: str = ""
    broken: bool = False


@dataclass(slots=True)
class DeferredPublish:
    """A message that is complete but for being sent."""

    arguments: dict[str, Any]

    def stamp(self) -> None:
        """Mark this sending, so that a worker tells a second sending from a redelivery of the first."""
        header = self.arguments["headers"].get(HEADER)
        if header is not None:
            header["publish"] = new_token()


class _DeferringProducer(DeclaringOnce):
    """Builds messages and keeps them."""

    deferred: list[DeferredPublish]
    _signature = inspect.signature(Producer._publish)  # noqa: SLF001 -- the seam, the same since kombu 5.3

    def _publish(self, *args: Any, **kwargs: Any) -> None:
        arguments = dict(self._signature.bind(self, *args, **kwargs).arguments)
        del arguments["self"]
        self.deferred.append(DeferredPublish(arguments))

    def carry_out(self, message: DeferredPublish) -> None:
        super()._publish(**message.arguments)


class Publisher:
    """The connection to the broker, for the main loop only. ``timeout`` bounds each wait on it, in seconds."""

    def __init__(self, app: Celery, timeout: float, clock: Clock) -> None:
        self._app = app
        self._timeout = timeout
        self._clock = clock
        self._connection: Connection | None = None
        self._producer: _DeferringProducer | None = None
        self._used_at = 0.0
        self._driver = ""
        self._blocked = False

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[DeferredPublish, ...]:
        producer = self._connected()
        if self._driver == "sqs":
            options = {"MessageDeduplicationId": options.get("task_id"), **options}
        producer.deferred = []
        publish(self._app, producer, task_name=str(entry.task), args=args, kwargs=kwargs, options=options)
        if not producer.deferred:
            raise NothingPublished(str(entry.task))
        return tuple(producer.deferred)

    def ready(self) -> None:
        """Make sure that the broker answers, before anything is claimed.

        Raises:
            StoreUnavailable: it doesn't, and nothing was sent.
        """
        self._connected()
        if self._clock.elapsed() - self._used_at >= _IDLE or self._something_came():
            try:
                channel: Any = self._connection.channel() if self._connection is not None else None
                channel.close()
            except Exception:
                self.reset()
                self._connected()
            self._used_at = self._clock.elapsed()
        if self._blocked:
            raise StoreUnavailable("the broker takes no messages now: it is short of memory or disk", acted=False)

    def _something_came(self) -> bool:
        """Whether the broker has said something unasked, such as that it closes the connection."""
        if self._connection is None or self._driver != "amqp":
            return False
        amqp: Any = self._connection.connection
        try:
            poll = select.poll()
            poll.register(amqp.sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError, AttributeError):
            return True

    def send(self, messages: Sequence[DeferredPublish]) -> Sent:
        """Send the messages of one occurrence and wait until the broker has confirmed each.

        Raises:
            StoreUnavailable: there is no connection to be had, and nothing was sent.
        """
        producer = self._connected()
        connection: Any = producer.connection
        for number, message in enumerate(messages):
            message.stamp()
            message.arguments["timeout"] = self._timeout
            message.arguments["confirm_timeout"] = self._timeout
            try:
                producer.carry_out(message)
            except Exception as exc:
                answered = isinstance(exc, ResponseError if self._driver == "redis" else connection.channel_errors)
                nack = isinstance(exc, MessageNacked)
                whole = answered and number == 0 and self._goes_whole(producer.channel, message)
                if not nack:
                    self.reset()
                why = f"{type(exc).__name__}: {exc}".rstrip(": ")
                return Sent("refused" if whole else "unknown", why, broken=not (answered or nack))
        self._used_at = self._clock.elapsed()
        return Sent("accepted")

    def _goes_whole(self, channel: Any, message: DeferredPublish) -> bool:
        """Whether a broker that answers with an error has taken nothing of the message.

        An AMQP broker routes by itself. On Redis kombu writes to one queue after the other. Of others nothing is known.
        """
        if self._driver == "amqp":
            return True
        try:
            queues = channel._lookup(message.arguments["exchange"], message.arguments["routing_key"])  # noqa: SLF001
            expiring = getattr(channel, "_expires", {})
            return self._driver == "redis" and len(queues) == 1 and not any(queue in expiring for queue in queues)
        except Exception:
            return False

    def reset(self) -> None:
        """Forget the connection: what it was doing is unknown."""
        connection, self._connection, self._producer = self._connection, None, None
        self._blocked = False
        if connection is not None:
            try:
                connection.collect(socket_timeout=self._timeout)
            except Exception:
                return

    def _connected(self) -> _DeferringProducer:
        if self._producer is not None and self._connection is not None and self._connection.connected:
            return self._producer
        self.reset()
        stock = self._app.connection_for_write()
        connection = stock.clone(
            connect_timeout=min(stock.connect_timeout or self._timeout, self._timeout),
            transport_options={**(stock.transport_options or {}), **self._options(stock.transport.driver_type)},
        )
        try:
            # Each of the hosts once, and without the pause between two rounds: the main loop is waiting.
            connection.ensure_connection(max_retries=max(len(connection.alt) - 1, 0))
            producer = _DeferringProducer(connection, auto_declare=False, serializer=self._app.conf.task_serializer)
        except Exception as exc:
            raise StoreUnavailable(f"the broker can't be reached: {type(exc).__name__}: {exc}", acted=False) from exc
        self._driver = connection.transport.driver_type
        self._connection, self._producer, self._used_at = connection, producer, self._clock.elapsed()
        return producer

    def _options(self, driver: str) -> dict[str, Any]:
        seconds = self._timeout
        if driver == "amqp":
            return {
                "confirm_publish": True,
                "read_timeout": seconds,
                "write_timeout": seconds,
                "on_blocked": self._block,
                "on_unblocked": self._unblock,
            }
        if driver == "redis":
            return {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry_on_timeout": False}
        return {}

    def _block(self, *_: Any) -> None:
        self._blocked = True

    def _unblock(self, *_: Any) -> None:
        self._blocked = False
