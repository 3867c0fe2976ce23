"""The one subscribed connection of a replica: its presence, and its ear for the wake channel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError

from ha_beat.clock import Clock
from ha_beat.lease import Keys, new_token
from ha_beat.redis_scripts import text

if TYPE_CHECKING:
    import redis
    from redis.client import PubSub


class PresenceError(Exception):
    """The connection ended, or the server stopped answering on it."""


class Presence(Protocol):
    """What the elector needs of such a connection."""

    @property
    def channel(self) -> str:
        """The presence channel now subscribed; empty while there is none."""
        ...

    def open(self) -> None:
        """Subscribe under a new channel name.

        Raises:
            PresenceError: it could not be.
        """
        ...

    def wait(self, seconds: float) -> bool:
        """Wait for a wake message; True when one came.

        Raises:
            PresenceError: the connection is gone.
        """
        ...

    def close(self) -> None: ...


class RedisPresence:
    """Presence over Redis pub/sub. Used by one thread only."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys, clock: Clock, ping_interval: float) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock
        self._ping_interval = ping_interval
        self._pubsub: PubSub | None = None
        self._next_ping = 0.0
        self._unanswered = False
        self.channel = ""

    def open(self) -> None:
        self.close()
        channel = self._keys.presence(new_token())
        try:
            self._pubsub = self._client().pubsub()  # type: ignore[no-untyped-call]
            # A new name each time: a standby must not take an old connection's end for this one's.
            self._pubsub.subscribe(self._keys.wake, channel)
        except (RedisError, OSError) as exc:
            self.close()
            raise PresenceError(str(exc)) from exc
        self.channel = channel
        self._next_ping = self._clock.elapsed() + self._ping_interval
        self._unanswered = False

    def wait(self, seconds: float) -> bool:
        if self._pubsub is None:
            raise PresenceError("not subscribed")
        try:
            self._ping_when_due(self._pubsub)
            message = self._pubsub.get_message(timeout=max(seconds, 0.0))
        except (RedisError, OSError, ValueError) as exc:
            self.close()
            raise PresenceError(str(exc) or type(exc).__name__) from exc
        if message is None:
            return False
        kind = text(message["type"])
        if kind == "pong":
            self._unanswered = False
        return kind == "message" and text(message["channel"]) == self._keys.wake

    def _ping_when_due(self, pubsub: PubSub) -> None:
        now = self._clock.elapsed()
        if now < self._next_ping:
            return
        if self._unanswered:
            raise ConnectionError("the server has stopped answering")
        pubsub.ping()
        self._unanswered = True
        self._next_ping = now + self._ping_interval

    def close(self) -> None:
        pubsub = self._pubsub
        self._pubsub, self.channel = None, ""
        if pubsub is None:
            return
        # Not back to the pool: nobody else shall inherit the subscription.
        connection: Any = pubsub.connection
        with suppress(RedisError, OSError):
            if connection is not None:
                connection.disconnect()
            pubsub.close()
