"""Publishes to any broker that kombu knows, one confirmed message at a time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from kombu import Producer

from ha_beat.clock import Clock
from ha_beat.dispatch.broker_adapters import AmqpCarrier, Arguments, Carrier, RedisCarrier, Sent, SqsCarrier, worded
from ha_beat.dispatch.message import DeclaringOnce, NothingPublished, publish
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.headers import HEADER
from ha_beat.reasons import PublishOutcome
from ha_beat.store.lease import new_token

_CARRIERS: Mapping[str, type[Carrier]] = {"amqp": AmqpCarrier, "redis": RedisCarrier, "sqs": SqsCarrier}

BLOCKED = "the broker takes no messages now: it is short of memory or disk"

#: A connection idle for so many seconds is tried before a message is trusted to it.
_IDLE = 5.0


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

    def declare_for(self, message: DeferredPublish) -> None:
        """Make the queues and exchanges that the message needs, each once on a connection."""
        for entity in message.arguments.get("declare") or ():
            self.maybe_declare(entity)

    def carry_out(self, arguments: Arguments) -> None:
        super()._publish(**{**arguments, "declare": ()})


class Publisher:
    """The connection to the broker, for the main loop only. ``timeout`` bounds each wait on it, in seconds."""

    def __init__(self, app: Celery, timeout: float, clock: Clock) -> None:
        self._app = app
        self._timeout = timeout
        self._clock = clock
        self._carrier: Carrier | None = None
        self._producer: _DeferringProducer | None = None
        self._used_at = 0.0
        self._driver = ""

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[DeferredPublish, ...]:
        producer, _ = self._connected()
        if self._driver == "sqs":
            options = {"MessageDeduplicationId": options.get("task_id"), **options}
        producer.deferred = []
        publish(self._app, producer, task_name=str(entry.task), args=args, kwargs=kwargs, options=options)
        if not producer.deferred:
            raise NothingPublished(str(entry.task))
        return tuple(producer.deferred)

    def ready(self) -> None:
        """Make sure that the broker answers and takes messages, before anything is claimed.

        Raises:
            StoreUnavailable: it doesn't, and nothing was sent.
        """
        _, carrier = self._connected()
        try:
            said_something = carrier.check()
            # A broker that takes no messages does not listen either: it says when that is over.
            if not carrier.blocked and (said_something or self._clock.elapsed() - self._used_at >= _IDLE):
                carrier.probe()
                self._used_at = self._clock.elapsed()
        except Exception:
            self.reset()
            self._connected()
            return
        if carrier.blocked:
            raise StoreUnavailable(BLOCKED, acted=False)
        if carrier.owed:
            # An answer that comes late must not be taken for that of the next message.
            self.reset()
            self._connected()

    def send(self, messages: Sequence[DeferredPublish]) -> Sent:
        """Send the messages of one occurrence and wait until the broker has confirmed each.

        Raises:
            StoreUnavailable: the connection failed before anything was sent.
        """
        why = ""
        for number, message in enumerate(messages):
            try:
                sent = self._send(message)
            except StoreUnavailable as exc:
                if number == 0:
                    raise
                sent = Sent(PublishOutcome.UNKNOWN, str(exc), broken=True)
            if sent.outcome is not PublishOutcome.ACCEPTED:
                # Of several, those before it have been accepted.
                return sent if number == 0 else Sent(PublishOutcome.UNKNOWN, sent.detail, sent.broken)
            why = why or sent.detail
        self._used_at = self._clock.elapsed()
        return Sent(PublishOutcome.ACCEPTED, why)

    def _send(self, message: DeferredPublish) -> Sent:
        message.stamp()
        producer, carrier = self._connected()
        try:
            carrier.check()
            if carrier.blocked:
                raise StoreUnavailable(BLOCKED, acted=False)
            producer.declare_for(message)
            sent = carrier.put(producer.carry_out, message.arguments)
        except StoreUnavailable:
            if not carrier.blocked:
                self.reset()
            raise
        except Exception as exc:
            entrys_own = carrier.entrys_own(exc)
            self.reset()
            if entrys_own:
                return Sent(PublishOutcome.REFUSED, worded(exc))
            raise StoreUnavailable(worded(exc), acted=False) from exc
        except BaseException:
            # Broken off in the middle of something.
            self.reset()
            raise
        if not self._may_stay(carrier, sent):
            self.reset()
        return sent

    def _may_stay(self, carrier: Carrier, sent: Sent) -> bool:
        """Whether the connection is kept.

        A blocked one is: on a new one the broker would say so only once it has a message of ours. One that was refused
        a message is not: queues may be gone that were declared by it.
        """
        return carrier.blocked or not (sent.outcome is PublishOutcome.REFUSED or sent.broken or carrier.owed)

    def reset(self) -> None:
        """Forget the connection: what it was doing is unknown."""
        carrier, self._carrier, self._producer = self._carrier, None, None
        if carrier is not None:
            carrier.close()

    def _connected(self) -> tuple[_DeferringProducer, Carrier]:
        if self._producer is not None and self._carrier is not None and self._carrier.alive:
            return self._producer, self._carrier
        self.reset()
        self._driver = self._app.connection_for_write().transport.driver_type
        carrier = _CARRIERS.get(self._driver, Carrier)(self._app, self._timeout)
        try:
            channel = carrier.open()
            producer = _DeferringProducer(channel, auto_declare=False, serializer=self._app.conf.task_serializer)
        except Exception as exc:
            carrier.close()
            why = str(exc) if isinstance(exc, StoreError) else worded(exc)
            raise StoreUnavailable(f"the broker can't be reached: {why}", acted=False) from exc
        self._carrier, self._producer, self._used_at = carrier, producer, self._clock.elapsed()
        return producer, carrier
