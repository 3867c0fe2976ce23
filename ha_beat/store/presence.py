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
    """Presence connection that ended, or on which the server stopped answering."""


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
        """Wait for a wake message, at most for that many seconds. Return True if one arrived.

        Raises:
            PresenceError: the connection ended.
        """
        ...

    def wake(self) -> None:
        """End the current or the next wait. Any thread and a signal handler may call it."""
        ...

    def close(self) -> None: ...


def _pubsub(client: Any) -> PubSub:
    options = {}
    if str(client.connection_pool.connection_kwargs.get("protocol")) == "3":
        # Without a handler, older versions of redis-py log every message over RESP3.
        options["push_handler_func"] = lambda message: message
    pubsub: PubSub = client.pubsub(**options)
    return pubsub


def _socket_of(pubsub: PubSub) -> Any:
    return getattr(pubsub.connection, "_sock", None)


_presences: weakref.WeakSet[RedisPresence] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    """Close the child's copies of the connections: with one open, the parent counts as present after its death."""
    for presence in list(_presences):
        presence.close_copy()  # guard: presence-forked


if hasattr(os, "register_at_fork"):
    # A program that is started by exec inherits no socket.
    os.register_at_fork(after_in_child=_close_in_forked_child)


class RedisPresence:
    """Presence over Redis pub/sub. Used by one thread only, except for :meth:`wake`."""

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
        self._pubsub: PubSub | None = None
        self._next_ping = 0.0
        self._unanswered = False
        self._connected_again = False
        self._selector: selectors.BaseSelector | None = None
        #: Ends of a connection by which :meth:`wake` ends a wait. It stays open until this object goes: a thread must
        #: not write to a descriptor that has become another's.
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
            weakref.finalize(self, end.close)
        #: True if redis-py may have a message that it has read from the socket, and not returned yet.
        self._unread = True
        self.channel = ""
        _presences.add(self)

    def open(self) -> None:
        self.close()
        # A new name each time: a standby must not mistake the end of an old connection for the end of this one.
        token = new_token()  # guard: presence-new-channel
        channel = self._keys.shard_presence(token) if self._sharded else self._keys.presence(token)
        try:
            with mapped_redis_errors():
                self._subscribe(channel)
        except StoreError as exc:
            self.close()
            raise PresenceError(str(exc)) from exc
        self.channel = channel
        self._next_ping = self._clock.elapsed() + self._ping_interval
        self._unanswered = False

    def _subscribe(self, channel: str) -> None:
        pubsub: Any = _pubsub(self._client())
        self._pubsub = pubsub
        pubsub.subscribe(self._keys.wake)
        (pubsub.ssubscribe if self._sharded else pubsub.subscribe)(channel)
        self._confirm(pubsub, {self._keys.wake, channel})
        self._connected_again = False
        pubsub.connection.register_connect_callback(self._on_connect)
        self._selector = selectors.DefaultSelector()
        self._selector.register(_socket_of(pubsub), selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._unread = True

    def _confirm(self, pubsub: PubSub, wanted: set[str]) -> None:
        """Wait until Redis has confirmed the subscriptions, or answered with an error."""
        until = self._clock.elapsed() + _CONFIRM_WITHIN
        while wanted:
            left = until - self._clock.elapsed()
            if left <= 0:
                raise TimeoutError("the subscription was not confirmed")
            message = pubsub.get_message(timeout=left)
            if message is not None and text(message["type"]) in ("subscribe", "ssubscribe"):
                wanted.discard(text(message["channel"]))

    def _on_connect(self, _: object) -> None:
        """Note that redis-py reconnected by itself. The connection was lost meanwhile, and may reach another server."""
        self._connected_again = True

    def wait(self, seconds: float) -> bool:
        if self._pubsub is None or self._selector is None:
            raise PresenceError("not subscribed")
        try:
            self._ping_when_due(self._pubsub)  # guard: presence-ping
            message = None
            # redis-py spends twice the processor time on waiting.
            if self._unread or self._readable(self._selector, min(seconds, self._next_ping - self._clock.elapsed())):
                message = self._pubsub.get_message(timeout=0.0)
                self._unread = message is not None
            if self._connected_again:  # guard: presence-reconnected
                raise ConnectionError("the connection was lost for a moment")
        except (RedisError, OSError, ValueError) as exc:
            self.close()
            raise PresenceError(str(exc) if isinstance(exc, ValueError) else in_words(exc)) from exc
        if message is None:
            return False
        kind = text(message["type"])
        if kind == "sunsubscribe":
            self.close()
            raise PresenceError("the keys have moved to another node of the Redis Cluster")
        if kind == "pong":
            self._unanswered = False
        return kind == "message" and text(message["channel"]) == self._keys.wake

    def wake(self) -> None:
        # If the buffer is full, enough is in it.
        with suppress(OSError):
            self._waker.send(b"\0")

    def _readable(self, selector: selectors.BaseSelector, seconds: float) -> bool:
        """Wait until Redis has sent something, or for :meth:`wake`. Return True if Redis has."""
        ready = [key.fileobj for key, _ in selector.select(max(seconds, 0.0))]
        if self._woken not in ready:
            return bool(ready)
        self._woken.recv(4096)
        return len(ready) > 1

    def _ping_when_due(self, pubsub: PubSub) -> None:
        now = self._clock.elapsed()
        if now < self._next_ping:
            return
        if self._unanswered:
            raise ConnectionError("the server has stopped answering")
        pubsub.ping()
        self._unanswered = True
        self._next_ping = now + self._ping_interval

    def close_copy(self) -> None:
        """Close the connection in a forked child. Unlike :meth:`close`, it leaves the parent's connection alone."""
        self.channel = ""
        sock = _socket_of(self._pubsub) if self._pubsub is not None else None
        if sock is not None:
            with suppress(OSError):
                sock.close()
        if self._selector is not None:
            self._selector.close()

    def close(self) -> None:
        pubsub, selector = self._pubsub, self._selector
        self._pubsub, self._selector, self.channel = None, None, ""
        if selector is not None:
            selector.close()
        if pubsub is None:
            return
        # The connection must not return to the pool while it is subscribed.
        connection: Any = pubsub.connection
        with suppress(RedisError, OSError):
            if connection is not None:
                connection.deregister_connect_callback(self._on_connect)
                connection.disconnect()
            pubsub.close()
