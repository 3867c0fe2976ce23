"""Reports of Redis on changed keys (``CLIENT TRACKING`` in broadcast mode, Redis 6)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis import exceptions as redis_errors

_CHANNEL = "__redis__:invalidate"

#: Longest wait for the answer to a ping, in seconds.
_PING_TIMEOUT = 1.0

#: Most messages that one call reads.
_MESSAGES = 100_000


class Invalidations:
    """Subscription to changes of the keys with a prefix. Used by one thread.

    If the server refuses it, the next attempt follows a lost connection.
    """

    def __init__(self, client: Callable[[], Any], prefix: str) -> None:
        """``client`` returns a client of protocol 2, in which the messages of a subscription are replies."""
        self._client = client
        self._prefix = prefix
        self._connection: Any = None
        self._pinged = False
        #: True if the server reports changes.
        self.active = False
        self._refused = False

    def take(self) -> set[str] | None:
        """Return the keys changed since the last call, ``None`` if any may have changed. Raises redis-py's errors."""
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
        """Close the connection. The next call opens another one."""
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
            # Redis is older than 6, or the permission is missing.
            self.close()
            self._refused = True
        except (redis_errors.RedisError, OSError):
            self.close()
            raise

    def _ask(self, *command: Any) -> Any:
        self._connection.send_command(*command)
        return self._connection.read_response()

    def _read(self) -> set[str] | None:
        """Return the changed keys. If the ping of the last call has no answer, the connection is dead."""
        connection, found, everything, answered = self._connection, set[str](), False, not self._pinged
        for _ in range(_MESSAGES):
            if not connection.can_read(timeout=0 if answered else _PING_TIMEOUT):
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
