"""Publisher to any broker that kombu supports: it builds messages, keeps the connection and reports each outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry

from ha_beat.clock import Clock
from ha_beat.dispatch.brokers.adapter import BrokerAdapter, Delivery, Sent
from ha_beat.dispatch.brokers.amqp_adapter import AmqpAdapter
from ha_beat.dispatch.brokers.redis_adapter import RedisAdapter
from ha_beat.dispatch.brokers.sqs_adapter import SqsAdapter
from ha_beat.dispatch.messages.build import DEDUPLICATION, Sender, has_own_apply_async, publish
from ha_beat.dispatch.messages.build_errors import is_io_error
from ha_beat.dispatch.messages.deferred import DeferredMessage, DeferredPublish, DeferringProducer
from ha_beat.dispatch.messages.recipe import Recipes
from ha_beat.dispatch.protocol import PreparedMessage
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.exception_text import exception_line
from ha_beat.headers import HEADER
from ha_beat.reasons import PublishOutcome

_ADAPTERS: Mapping[str, type[BrokerAdapter]] = {"amqp": AmqpAdapter, "redis": RedisAdapter, "sqs": SqsAdapter}

BLOCKED = "the broker accepts no messages: it is short of memory or disk"

#: Seconds after which an idle connection is probed before a message is sent through it.
_IDLE = 5.0

#: Seconds for which messages are sent one by one after a failure has left several without an answer. If one message
#: causes the failure each time, the outcome of the others stays known.
_ONE_BY_ONE = 300.0


class Publisher:
    """Connection of the main loop to the broker. ``timeout`` bounds each wait on it, in seconds."""

    def __init__(self, app: Celery, timeout: float, clock: Clock, send: Sender | None = None) -> None:
        self._app = app
        self._sender = send or Sender(app)
        self.recipes = Recipes(self._sender)
        self._timeout = timeout
        self._clock = clock
        self._adapter: BrokerAdapter | None = None
        self._producer: DeferringProducer | None = None
        self._used_at = 0.0
        self._driver = ""
        self._one_by_one_until = 0.0
        #: True if the last attempt to connect failed.
        self._unreachable = False

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> DeferredMessage:
        """Build an entry's message. Raises as :func:`publish`, or StoreUnavailable if the broker is unreachable."""
        if has_own_apply_async(self._app, str(entry.task)):
            # The task may reserve something for its message, which it would lose if the broker is unreachable.
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
        """Build a message as :meth:`prepare` does, but do not wait for a broker that was unreachable."""
        if self._unreachable:
            raise StoreUnavailable("the broker was unreachable", acted=False)
        return self.prepare(entry, args, kwargs, options)

    def broker_error(self, exc: BaseException) -> StoreError | None:
        """Return the broker's failure if the exception is one of I/O and the broker does not answer now."""
        if is_io_error(exc):
            try:
                self.ready()
            except StoreError as error:
                return error
        return None

    def ready(self) -> None:
        """Check that the broker answers and accepts messages. Connect if necessary.

        Raises:
            StoreUnavailable: the broker is unreachable or blocked.
        """
        _, adapter = self._connected()
        try:
            received = adapter.check()
            # A blocked broker reads nothing, so a probe would time out. The broker reports the end of the block.
            if not adapter.blocked and (received or self._clock.elapsed() - self._used_at >= _IDLE):
                adapter.probe()
                self._used_at = self._clock.elapsed()
        except Exception:
            self.reset()
            self._connected()
            return
        if adapter.blocked:
            raise _blocked()
        if adapter.must_be_replaced or adapter.unanswered():
            # A late answer must not be taken for the answer to the next message.
            self.reset()
            self._connected()

    def wait_if_alone(self, message: PreparedMessage, answered: Callable[[], None]) -> bool:
        """Wait for the answers to earlier messages if this one must be sent alone. Return True if it must.

        The wait may be long. Call this before the last check that the message may still be sent.
        """
        publishes = message.publishes if isinstance(message, DeferredMessage) else ()
        alone = len(publishes) != 1 or self._goes_alone(publishes[0])
        if alone:
            self.wait_for_answers(answered)
        return alone

    def send(self, message: PreparedMessage, delivery: Delivery, *, alone: bool) -> None:
        """Send a message. ``delivery`` has its outcome now, or after :meth:`wait_for_answers`.

        ``alone`` is the result of :meth:`wait_if_alone` for this message.

        Raises:
            StoreUnavailable: the connection failed before anything was sent.
        """
        if not isinstance(message, DeferredMessage):
            raise TypeError(f"a publisher can't send a {type(message).__name__}")
        if len(message.publishes) == 1:
            self._send(message.publishes[0], delivery, alone=alone)
        else:
            delivery.sent = self._send_each(message.publishes)

    def _send_each(self, publishes: Sequence[DeferredPublish]) -> Sent:
        """Send the publishes of one message one by one. The message is unknown if the broker accepted only some."""
        detail = ""
        for number, one in enumerate(publishes):
            part = Delivery()
            try:
                self._send(one, part, alone=True)
            except StoreUnavailable as exc:
                if number == 0:
                    raise
                part.sent = Sent(PublishOutcome.UNKNOWN, str(exc), broken=True)
            sent = part.sent or Sent(PublishOutcome.UNKNOWN)
            if sent.outcome is not PublishOutcome.ACCEPTED:
                return sent if number == 0 else Sent(PublishOutcome.UNKNOWN, sent.detail, sent.broken)
            detail = detail or sent.detail
        return Sent(PublishOutcome.ACCEPTED, detail)

    def wait_for_answers(self, answered: Callable[[], None] = lambda: None) -> None:
        """Wait until each message that was sent has an outcome. Call ``answered`` after each answer."""
        adapter = self._adapter
        if adapter is None:
            return
        if adapter.unanswered():
            adapter.wait_for_answers(answered, self._clock)
            self._used_at = self._clock.elapsed()
        if adapter.must_be_replaced and not adapter.blocked:
            # A blocked broker keeps its connection: on a new one, it reports the block only after a message.
            self.reset()

    def _send(self, message: DeferredPublish, delivery: Delivery, *, alone: bool) -> None:
        if alone:
            self.wait_for_answers()
        message.stamp()
        producer, adapter = self._connected()
        others = adapter.unanswered()
        try:
            adapter.check()
            if adapter.blocked:
                raise _blocked()
            producer.declare_for(message)
            adapter.put(producer.carry_out, message.arguments, delivery)
        except StoreUnavailable:
            if not adapter.blocked:
                self.reset()
            raise
        except Exception as exc:
            message_at_fault = not others and adapter.is_message_error(exc)
            self.reset()
            if not message_at_fault:
                raise StoreUnavailable(exception_line(exc), acted=False) from exc
            delivery.sent = Sent(PublishOutcome.REFUSED, exception_line(exc))
        except BaseException:
            # The connection is in an unknown state.
            adapter.must_be_replaced = True
            raise
        if delivery.sent is not None:
            self._used_at = self._clock.elapsed()
        if alone or adapter.must_be_replaced:
            self.wait_for_answers()

    def _goes_alone(self, message: DeferredPublish) -> bool:
        """True if a failure of this message might leave the outcome of earlier messages unknown."""
        producer, adapter = self._producer, self._adapter
        return (
            producer is None
            or adapter is None
            or adapter.must_be_replaced
            or self._clock.elapsed() < self._one_by_one_until  # guard: publish-one-by-one
            or adapter.goes_alone(message.arguments)
            or producer.declares(message)
        )

    def reset(self) -> None:
        """Close the connection."""
        adapter, self._adapter, self._producer = self._adapter, None, None
        if adapter is not None:
            adapter.close()
            if adapter.lost_together:
                self._one_by_one_until = self._clock.elapsed() + _ONE_BY_ONE

    def _connected(self) -> tuple[DeferringProducer, BrokerAdapter]:
        if self._producer is not None and self._adapter is not None and self._adapter.alive:
            return self._producer, self._adapter
        self.reset()
        self._driver = self._app.connection_for_write().transport.driver_type
        adapter = _ADAPTERS.get(self._driver, BrokerAdapter)(self._app, self._timeout)
        try:
            channel = adapter.open()
            producer = DeferringProducer(channel, auto_declare=False, serializer=self._app.conf.task_serializer)
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
