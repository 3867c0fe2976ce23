"""Bound on name resolution.

``getaddrinfo`` has no timeout: while the name server does not answer, it blocks its caller for 20 s and more. Its
caller may be the main loop, which then counts as hung, or the election. Each name is therefore resolved in a thread of
its own before a connection resolves it again, and a connection waits for that thread no longer than for connecting.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from contextlib import suppress
from typing import Any

from redis.connection import ConnectionPool, UnixDomainSocketConnection


class _Lookup(threading.Thread):
    """Thread that resolves one name."""

    def __init__(self, host: str) -> None:
        super().__init__(name="ha_beat-dns", daemon=True)
        self._host = host
        self.error: OSError | None = None

    def run(self) -> None:
        # A name that is no valid text is reported by the connection.
        with suppress(UnicodeError):
            try:
                socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
            except OSError as exc:
                self.error = exc


#: Last lookup of each name. One that has ended is replaced at the next use.
_lookups: dict[str, _Lookup] = {}


def await_name(host: str, timeout: float) -> None:
    """Wait until the name is resolved. A numeric address returns at once.

    May run in a signal handler: it takes no lock of its own.

    Raises:
        OSError: the name does not exist, or the name server did not answer within ``timeout`` seconds.
    """
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return
    lookup = _lookups.get(host)
    if lookup is None or not lookup.is_alive():
        lookup = _lookups[host] = _Lookup(host)
        lookup.start()
    lookup.join(timeout)
    if lookup.is_alive():
        raise socket.gaierror(socket.EAI_AGAIN, f"{host} was not resolved within {timeout:g} s")
    if lookup.error is not None:
        # Not left to the connection, which would wait for the name server again.
        raise lookup.error


class _BoundedConnection:
    """Mixin for connections of redis-py: it waits for the name before the socket is opened."""

    host: str
    socket_connect_timeout: float | None

    def _connect(self) -> Any:
        if self.socket_connect_timeout:
            await_name(self.host, self.socket_connect_timeout)
        connect: Any = super()._connect  # type: ignore[misc]  # of the class that this is mixed into
        return connect()


def with_bounded_names(pool: ConnectionPool) -> ConnectionPool:
    """Make the new connections of a pool, and of its Sentinels, wait for a name no longer than for connecting."""
    cls: type[Any] = pool.connection_class
    if not issubclass(cls, UnixDomainSocketConnection | _BoundedConnection):
        pool.connection_class = type(cls.__name__, (_BoundedConnection, cls), {})
    manager: Any = getattr(pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        with_bounded_names(sentinel.connection_pool)
    return pool
