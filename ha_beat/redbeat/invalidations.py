"""Keys that were changed, as Redis itself reports them (``CLIENT TRACKING`` in broadcast mode, Redis 6)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis import exceptions as redis_errors

_CHANNEL = "__redis__:invalidate"

#: Seconds for an answer to the last ping.
_PATIENCE = 1.0

#: Messages that are read at once.
_MESSAGES = 100_000


class Invalidations:
    """Connection that is told which keys with a prefix have changed. Used by one thread.

    A server that refuses it is asked again after each lost connection only.
    """

    def __init__(self, client: Callable[[], Any], prefix: str) -> None:
        """``client`` returns a client of protocol 2, in which messages of a subscription are answers."""
        self._client = client
        self._prefix = prefix
        self._connection: Any = None
        self._pinged = False
        #: True if the server reports changes.
        self.active = False
        self._refused = False

    def take(self) -> set[str] | None:
        """Return the keys changed since the last call; ``None`` if each may have changed. Raises redis-py's errors."""
        if self._connection is None:
            if not self._refused:
                self._connect()
            return None
        try:
            return self._read()
        except (redis_errors.RedisError, OSError):
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. The next call makes another."""
        connection, self._connection = self._connection, None
        self.active = self._pinged = self._refused = False
        if connection is not None:
            with suppress(Exception):
                connection.disconnect()

    def _connect(self) -> None:
        self._connection = self._client().connection_pool.make_connection()
        try:
            self._connection.connect()
            own = self._ask("CLIENT", "ID")
            self._ask("CLIENT", "TRACKING", "ON", "REDIRECT", own, "BCAST", "PREFIX", self._prefix)
            self._ask("SUBSCRIBE", _CHANNEL)
            self.active = True
        except redis_errors.ResponseError:
            # Before Redis 6, or without the right.
            self.close()
            self._refused = True
        except (redis_errors.RedisError, OSError):
            self.close()
            raise

    def _ask(self, *command: Any) -> Any:
        self._connection.send_command(*command)
        return self._connection.read_response()

    def _read(self) -> set[str] | None:
        """Return the keys. A ping that got no answer since the last call shows that the connection is dead."""
        connection, found, everything, answered = self._connection, set[str](), False, not self._pinged
        for _ in range(_MESSAGES):
            if not connection.can_read(timeout=0 if answered else _PATIENCE):
                break
            message = connection.read_response()
            kind = message[0] if isinstance(message, list) and message else message
            if kind in {b"pong", b"PONG", "pong", "PONG"}:
                answered = True
            elif kind == b"message" and message[2] is None:
                everything = True
            elif kind == b"message":
                found |= {key.decode("utf-8", "surrogateescape") for key in message[2]}
        if not answered:
            raise redis_errors.TimeoutError("the connection for changes does not answer")
        connection.send_command("PING")
        self._pinged = True
        return None if everything else found
