"""Publisher to any broker that kombu supports, with one confirmed message at a time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from kombu import Producer

from ha_beat.clock import Clock
from ha_beat.dispatch.broker_adapters import (
    AmqpAdapter,
    Arguments,
    BrokerAdapter,
    RedisAdapter,
    Sent,
    SqsAdapter,
)
from ha_beat.dispatch.build_errors import is_io_error
from ha_beat.dispatch.message import DEDUPLICATION, DeclaringOnce, Sender, has_own_apply_async, is_timed, publish
from ha_beat.dispatch.protocol import PreparedMessage
from ha_beat.dispatch.recipe import Recipes
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.exception_text import exception_line
from ha_beat.headers import HEADER
from ha_beat.reasons import PublishOutcome
from ha_beat.store.lease import new_token

_ADAPTERS: Mapping[str, type[BrokerAdapter]] = {"amqp": AmqpAdapter, "redis": RedisAdapter, "sqs": SqsAdapter}

BLOCKED = "the broker accepts no messages: it is short of memory or disk"

#: Seconds after which an idle connection is probed before a message is sent through it.
_IDLE = 5.0


@dataclass(slots=True)
class DeferredPublish:
    """One publish through kombu that is complete but not carried out."""

    arguments: Arguments

    def stamp(self) -> None:
        """Give this publish an id, by which a worker tells a second publish from a redelivery of the first."""
        header = self.arguments["headers"].get(HEADER)
        if header is not None:
            header["publish"] = new_token()

    def restamped(self, header: Mapping[str, Any]) -> DeferredPublish:
        headers = self.arguments["headers"]
        if HEADER not in headers:
            return self
        return DeferredPublish({**self.arguments, "headers": {**headers, HEADER: {**headers[HEADER], **header}}})


@dataclass(frozen=True, slots=True)
class DeferredMessage:
    """Message as the publishes that enqueue it. An entry's task may publish more than once."""

    publishes: tuple[DeferredPublish, ...]

    @property
    def size(self) -> int:
        """Return 0: the message is not part of a script call."""
        return 0

    @property
    def timed(self) -> bool:
        return any(is_timed(one.arguments["headers"]) for one in self.publishes)

    def restamped(self, header: Mapping[str, Any]) -> DeferredMessage:
        return DeferredMessage(tuple(one.restamped(header) for one in self.publishes))


class _DeferringProducer(DeclaringOnce):
    """Producer that builds messages and keeps them."""

    deferred: list[DeferredPublish]
    _signature = inspect.signature(Producer._publish)  # noqa: SLF001 -- the seam, the same since kombu 5.3

    def _publish(self, *args: Any, **kwargs: Any) -> None:
        arguments = dict(self._signature.bind(self, *args, **kwargs).arguments)
        del arguments["self"]
        self.deferred.append(DeferredPublish(arguments))

    def declare_for(self, message: DeferredPublish) -> None:
        """Declare the queues and exchanges of a message, each once per connection."""
        for entity in message.arguments.get("declare") or ():
            self.maybe_declare(entity)

    def carry_out(self, arguments: Arguments) -> None:
        super()._publish(**{**arguments, "declare": ()})


class Publisher:
    """Connection of the main loop to the broker. ``timeout`` bounds each wait on it, in seconds."""

    def __init__(self, app: Celery, timeout: float, clock: Clock, send: Sender | None = None) -> None:
        self._app = app
        self._sender = send or Sender(app)
        self.recipes = Recipes(self._sender)
        self._timeout = timeout
        self._clock = clock
        self._adapter: BrokerAdapter | None = None
        self._producer: _DeferringProducer | None = None
        self._used_at = 0.0
        self._driver = ""
        #: True if the last attempt to connect failed.
        self._unreachable = False

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> DeferredMessage:
        """Build an entry's message.

        Raises:
            StoreUnavailable: the broker is unreachable.
            Declined: the entry's task published no message.
            NothingPublished: it did so through another producer.
            Exception: any exception of the entry's task, serializer or signal handlers.
        """
        if has_own_apply_async(self._app, str(entry.task)):
            # What the task reserves for its message waits for a broker that is unreachable.
            self.ready()
        producer, _ = self._connected()
        if self._driver == "sqs":
            occurrence = options.get("headers", {}).get(HEADER, {}).get("task_id") or options.get("task_id")
            options = {DEDUPLICATION: occurrence, **options}
        producer.deferred = []
        publish(self._sender, producer, entry, args, kwargs, options)
        return DeferredMessage(tuple(producer.deferred))

    def prepare_ahead(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> DeferredMessage:
        """Build a message like :meth:`prepare`, but wait for no broker that was unreachable: nothing is due yet."""
        if self._unreachable:
            raise StoreUnavailable("the broker was unreachable", acted=False)
        return self.prepare(entry, args, kwargs, options)

    def error_behind(self, exc: BaseException) -> StoreError | None:
        """Return the broker's failure if the broker does not answer now, and the exception may come from that."""
        if is_io_error(exc):
            try:
                self.ready()
            except StoreError as away:
                return away
        return None

    def ready(self) -> None:
        """Check, before anything is claimed, that the broker answers and accepts messages.

        Raises:
            StoreUnavailable: it does not, and nothing was sent.
        """
        _, adapter = self._connected()
        try:
            received = adapter.check()
            # A blocked broker reads nothing, so a probe would time out. It reports the end of the block by itself.
            if not adapter.blocked and (received or self._clock.elapsed() - self._used_at >= _IDLE):
                adapter.probe()
                self._used_at = self._clock.elapsed()
        except Exception:
            self.reset()
            self._connected()
            return
        if adapter.blocked:
            raise _blocked()
        if adapter.reply_pending:
            # A late reply must not be taken for the reply to the next message.
            self.reset()
            self._connected()

    def send(self, message: PreparedMessage) -> Sent:
        """Send the publishes of one message, and wait until the broker has confirmed each.

        Raises:
            StoreUnavailable: the connection failed before anything was sent.
        """
        if not isinstance(message, DeferredMessage):
            raise TypeError(f"a publisher can't send a {type(message).__name__}")
        detail = ""
        for number, one in enumerate(message.publishes):
            try:
                sent = self._send(one)
            except StoreUnavailable as exc:
                if number == 0:
                    raise
                sent = Sent(PublishOutcome.UNKNOWN, str(exc), broken=True)
            if sent.outcome is not PublishOutcome.ACCEPTED:
                # The publishes before this one were accepted.
                return sent if number == 0 else Sent(PublishOutcome.UNKNOWN, sent.detail, sent.broken)
            detail = detail or sent.detail
        self._used_at = self._clock.elapsed()
        return Sent(PublishOutcome.ACCEPTED, detail)

    def _send(self, message: DeferredPublish) -> Sent:
        message.stamp()
        producer, adapter = self._connected()
        try:
            adapter.check()
            if adapter.blocked:
                raise _blocked()
            producer.declare_for(message)
            sent = adapter.put(producer.carry_out, message.arguments)
        except StoreUnavailable:
            if not adapter.blocked:
                self.reset()
            raise
        except Exception as exc:
            message_at_fault = adapter.is_message_error(exc)
            self.reset()
            if message_at_fault:
                return Sent(PublishOutcome.REFUSED, exception_line(exc))
            raise StoreUnavailable(exception_line(exc), acted=False) from exc
        except BaseException:
            # The connection is in an unknown state.
            self.reset()
            raise
        if not self._reusable(adapter, sent):
            self.reset()
        return sent

    def _reusable(self, adapter: BrokerAdapter, sent: Sent) -> bool:
        """True if the connection can send the next message.

        A blocked connection is kept: on a new one, the broker reports the block only after it has received a message.
        A connection whose message was refused is not: queues that were declared through it may be gone.
        """
        refused = sent.outcome is PublishOutcome.REFUSED
        return adapter.blocked or not (refused or sent.broken or adapter.reply_pending)

    def reset(self) -> None:
        """Close the connection."""
        adapter, self._adapter, self._producer = self._adapter, None, None
        if adapter is not None:
            adapter.close()

    def _connected(self) -> tuple[_DeferringProducer, BrokerAdapter]:
        if self._producer is not None and self._adapter is not None and self._adapter.alive:
            return self._producer, self._adapter
        self.reset()
        self._driver = self._app.connection_for_write().transport.driver_type
        adapter = _ADAPTERS.get(self._driver, BrokerAdapter)(self._app, self._timeout)
        try:
            channel = adapter.open()
            producer = _DeferringProducer(channel, auto_declare=False, serializer=self._app.conf.task_serializer)
        except Exception as exc:
            self._unreachable = True
            adapter.close()
            if isinstance(exc, StoreError):
                raise StoreUnavailable.not_acted(exc) from exc
            raise StoreUnavailable(exception_line(exc), acted=False) from exc
        self._adapter, self._producer, self._used_at = adapter, producer, self._clock.elapsed()
        self._unreachable = False
        return producer, adapter


def _blocked() -> StoreUnavailable:
    error = StoreUnavailable(BLOCKED, acted=False)
    error.same_for_all = True
    return error
