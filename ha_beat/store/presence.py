"""Subscribed connection of a replica: it shows its presence and receives wake messages."""

from __future__ import annotations

import os
import selectors
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError

from ha_beat.clock import Clock
from ha_beat.errors import StoreError
from ha_beat.store.keys import Keys
from ha_beat.store.lease import new_token
from ha_beat.store.redis_errors import in_words, mapped_redis_errors
from ha_beat.store.scripts import text

if TYPE_CHECKING:
    import redis
    from redis.client import PubSub

#: Seconds within which Redis must confirm a subscription.
_CONFIRM_WITHIN = 2.0


class PresenceError(Exception):
    """The presence connection ended, or the server stopped answering on it."""


class Presence(Protocol):
    """Presence connection as the elector uses it."""

    @property
    def channel(self) -> str:
        """Return the presence channel now subscribed, ``""`` for none."""
        ...

    def open(self) -> None:
        """Subscribe under a new channel name.

        Raises:
            PresenceError: the subscription failed.
        """
        ...

    def wait(self, seconds: float) -> bool:
        """Wait for a wake message, at most for ``seconds``. Return True if one arrived.

        Raises:
            PresenceError: the connection ended.
        """
        ...

    def wake(self) -> None:
        """End the current or the next wait. Any thread and a signal handler may call it."""
        ...

    def close(self) -> None: ...


class _Waker:
    """Pair of sockets by which another thread or a signal handler ends a wait.

    It stays open until its owner is deleted: a thread must not write to a descriptor that has become another's.
    """

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        for end in (self.receiver, self._sender):
            end.setblocking(False)
            weakref.finalize(self, end.close)

    def wake(self) -> None:
        # A full buffer holds enough of them.
        with suppress(OSError):
            self._sender.send(b"\0")

    def clear(self) -> None:
        self.receiver.recv(4096)


class _Subscription:
    """One connection that is subscribed to a presence channel and to the wake channel.

    Its methods raise redis-py's errors, ``OSError``, or ``ValueError`` if it is closed.
    """

    def __init__(self, client: Any, waker: _Waker, clock: Clock, ping_interval: float) -> None:
        #: Presence channel, once Redis has confirmed it.
        self.channel = ""
        self._pubsub: Any = _pubsub(client)
        self._waker = waker
        self._clock = clock
        self._ping_interval = ping_interval
        self._selector = selectors.DefaultSelector()
        #: True if redis-py may have read a message from the socket that it has not returned yet.
        self._unread = True
        self._reconnected = False
        self._next_ping = 0.0
        self._unanswered = False

    def begin(self, channel: str, wake_channel: str, *, sharded: bool) -> None:
        """Subscribe, and wait until Redis has confirmed it."""
        pubsub = self._pubsub
        pubsub.subscribe(wake_channel)
        (pubsub.ssubscribe if sharded else pubsub.subscribe)(channel)
        self._confirm({wake_channel, channel})
        pubsub.connection.register_connect_callback(self._on_connect)
        self._selector.register(_socket_of(pubsub), selectors.EVENT_READ)
        self._selector.register(self._waker.receiver, selectors.EVENT_READ)
        self._next_ping = self._clock.elapsed() + self._ping_interval
        self.channel = channel

    def _confirm(self, wanted: set[str]) -> None:
        until = self._clock.elapsed() + _CONFIRM_WITHIN
        while wanted:
            left = until - self._clock.elapsed()
            if left <= 0:
                raise TimeoutError("the subscription was not confirmed")
            message = self._pubsub.get_message(timeout=left)
            if message is not None and text(message["type"]) in ("subscribe", "ssubscribe"):
                wanted.discard(text(message["channel"]))

    def _on_connect(self, _: object) -> None:
        """Note that redis-py reconnected: the connection was lost for a moment, and may reach another server now."""
        self._reconnected = True

    def receive(self, seconds: float) -> tuple[str, str] | None:
        """Return the kind and the channel of the next message; ``None`` after ``seconds`` or a wake by the waker."""
        self._ping_when_due()  # guard: presence-ping
        message = None
        # redis-py's own wait takes twice the processor time.
        if self._unread or self._readable(min(seconds, self._next_ping - self._clock.elapsed())):
            message = self._pubsub.get_message(timeout=0.0)
            self._unread = message is not None
        if self._reconnected:  # guard: presence-reconnected
            raise ConnectionError("the connection was lost for a moment")
        if message is None:
            return None
        kind = text(message["type"])
        if kind == "pong":
            self._unanswered = False
        return kind, text(message["channel"] or "")

    def _readable(self, seconds: float) -> bool:
        """Wait until Redis has sent something, or for the waker. Return True if Redis has."""
        ready = [key.fileobj for key, _ in self._selector.select(max(seconds, 0.0))]
        if self._waker.receiver not in ready:
            return bool(ready)
        self._waker.clear()
        return len(ready) > 1

    def _ping_when_due(self) -> None:
        now = self._clock.elapsed()
        if now < self._next_ping:
            return
        if self._unanswered:
            raise ConnectionError("the server has stopped answering")
        self._pubsub.ping()
        self._unanswered = True
        self._next_ping = now + self._ping_interval

    def close_copy(self) -> None:
        """Close the connection in a forked child. Unlike :meth:`close`, it leaves the parent's connection alone."""
        self.channel = ""
        sock = _socket_of(self._pubsub)
        if sock is not None:
            with suppress(OSError):
                sock.close()
        self._selector.close()

    def close(self) -> None:
        self._selector.close()
        # The connection must not return to the pool while it is subscribed.
        connection = self._pubsub.connection
        with suppress(RedisError, OSError):
            if connection is not None:
                connection.deregister_connect_callback(self._on_connect)
                connection.disconnect()
            self._pubsub.close()


def _pubsub(client: Any) -> PubSub:
    options = {}
    if str(client.connection_pool.connection_kwargs.get("protocol")) == "3":
        # Without a handler, older versions of redis-py log every message over RESP3.
        options["push_handler_func"] = lambda message: message
    pubsub: PubSub = client.pubsub(**options)
    return pubsub


def _socket_of(pubsub: PubSub) -> Any:
    return getattr(pubsub.connection, "_sock", None)


class RedisPresence:
    """:class:`Presence` over Redis pub/sub. Used by one thread only, except for :meth:`wake`."""

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        keys: Keys,
        clock: Clock,
        ping_interval: float,
        *,
        sharded: bool = False,
    ) -> None:
        """``sharded``: on a Redis Cluster, whose shard channels end when their keys move to another node."""
        self._client = client
        self._keys = keys
        self._clock = clock
        self._ping_interval = ping_interval
        self._sharded = sharded
        self._waker = _Waker()
        self._subscription: _Subscription | None = None
        _presences.add(self)

    @property
    def channel(self) -> str:
        return self._subscription.channel if self._subscription is not None else ""

    def open(self) -> None:
        self.close()
        # A new name each time: a standby must not mistake the end of an old connection for the end of this one.
        token = new_token()  # guard: presence-new-channel
        channel = self._keys.shard_presence(token) if self._sharded else self._keys.presence(token)
        try:
            with mapped_redis_errors():
                # Kept from the start: another thread may fork at any moment, and the child must close its copy.
                self._subscription = _Subscription(self._client(), self._waker, self._clock, self._ping_interval)
                self._subscription.begin(channel, self._keys.wake, sharded=self._sharded)
        except StoreError as exc:
            self.close()
            raise PresenceError(str(exc)) from exc

    def wait(self, seconds: float) -> bool:
        if self._subscription is None:
            raise PresenceError("not subscribed")
        try:
            message = self._subscription.receive(seconds)
        except (RedisError, OSError, ValueError) as exc:
            self.close()
            raise PresenceError(str(exc) if isinstance(exc, ValueError) else in_words(exc)) from exc
        if message is not None and message[0] == "sunsubscribe":
            self.close()
            raise PresenceError("the keys have moved to another node of the Redis Cluster")
        return message == ("message", self._keys.wake)

    def wake(self) -> None:
        self._waker.wake()

    def close_copy(self) -> None:
        """Close the connection in a forked child, without an effect on the parent's."""
        if self._subscription is not None:
            self._subscription.close_copy()

    def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()


_presences: weakref.WeakSet[RedisPresence] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    """Close the child's copies of the connections: with one open, the parent counts as present after its death."""
    for presence in list(_presences):
        presence.close_copy()  # guard: presence-forked


if hasattr(os, "register_at_fork"):
    # A program that is started by exec inherits no socket.
    os.register_at_fork(after_in_child=_close_in_forked_child)
