"""Dispatchers on a Redis client, without a broker connection and without a lease marker."""

from typing import Any, Self

from celery import Celery

from ha_beat.clock import SystemClock
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.dispatch.lease_marker import LeaseMark, LeaseMarker
from ha_beat.dispatch.messages.build import Sender
from ha_beat.dispatch.messages.capture import RedisCommands
from ha_beat.duties import Duties
from ha_beat.store.keys import Keys
from tests.support.brokers import FixedLink


def no_marker() -> LeaseMarker:
    """Return a lease marker for a broker that is not Redis, which does nothing."""
    nothing: Any = None
    clock = SystemClock()
    return LeaseMarker(None, nothing, Keys("unmarked"), LeaseMark(""), clock, nothing, Duties(clock, nothing))


def atomic_dispatcher(client: Any, keys: Keys) -> AtomicDispatcher:
    """Return a dispatcher that runs the dispatch script through a client. It can't prepare messages."""
    app = Celery("dispatcher", set_as_current=False)
    return AtomicDispatcher(Sender(app), FixedLink(client), keys, 1000, no_marker())


def app_dispatcher(app: Celery, keys: Keys) -> AtomicDispatcher:
    """Return a dispatcher that is connected to the app's broker."""
    return AtomicDispatcher(Sender(app), BrokerLink(app, 5.0), keys, 1000, no_marker())


class PlainPush(RedisCommands):
    """Message with a value that is not a task."""

    __slots__ = ()
    timed = False

    def restamped(self, _: object) -> Self:
        return self


class TimedPush(PlainPush):
    """Message with an expiry."""

    __slots__ = ()
    timed = True


def push(value: str = "message", queue: str = "queue") -> RedisCommands:
    """Return a message for one queue."""
    return PlainPush((("LPUSH", queue, value),))
