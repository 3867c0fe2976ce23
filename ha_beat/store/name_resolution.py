"""Bound on name resolution.

``getaddrinfo`` has no timeout: if the name server does not answer, it blocks for 20 s and more. The blocked thread may
be the main loop, which then counts as hung, or the election. A separate thread therefore resolves each name, and a
connection waits for that thread no longer than for connecting. Clients connect to the addresses found: with the name
they would ask the name server again, without a bound.

If several callers need one name in turn, only the first waits for a slow lookup. The next ones fail immediately until
it ends.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from redis.connection import ConnectionPool, UnixDomainSocketConnection

from ha_beat.clock import SystemClock

_elapsed = SystemClock().elapsed

Opened = TypeVar("Opened")

#: Seconds within which a caller retries to connect.
_RETRIED_WITHIN = 2.0


class _Lookup(threading.Thread):
    """Thread that resolves one name."""

    def __init__(self, host: str) -> None:
        super().__init__(name="ha_beat-dns", daemon=True)
        self._host = host
        self.began = self.ended = _elapsed()
        self.addresses: list[str] = []
        self.error: OSError | None = None

    def run(self) -> None:
        # The connection reports a name that is no valid text.
        with suppress(UnicodeError):
            try:
                found = socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
                self.addresses = list(dict.fromkeys(_address(each[4]) for each in found))
            except OSError as exc:
                self.error = exc
        self.ended = _elapsed()

    def usable(self, timeout: float) -> bool:
        """True if the lookup is running, or its outcome is recent.

        An outcome counts as recent for as long as the lookup took, so that slow lookups do not add up. If the name was
        found too late for the caller, its addresses are kept until callers have retried.
        """
        took, age = self.ended - self.began, _elapsed() - self.ended
        late = self.error is None and took > timeout
        return self.is_alive() or age < (took + _RETRIED_WITHIN if late else min(took, timeout))


#: Last lookup of each name.
_lookups: dict[str, _Lookup] = {}


def _address(where: tuple[Any, ...]) -> str:
    """Return the address of a socket address, with its scope if it has one."""
    return f"{where[0]}%{where[3]}" if len(where) == 4 and where[3] and "%" not in where[0] else str(where[0])


def resolve(host: str, timeout: float) -> list[str]:
    """Return the addresses of a name, or ``host`` if it is an address. ``timeout`` counts from the lookup's start.

    May run in a signal handler: it takes no lock.

    Raises:
        OSError: the name does not exist, or the name server did not answer within ``timeout`` seconds.
    """
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    lookup = _lookups.get(host)
    if lookup is None or not lookup.usable(timeout):
        lookup = _lookups[host] = _Lookup(host)
        lookup.start()
    lookup.join(max(lookup.began + timeout - _elapsed(), 0.0))
    if lookup.is_alive():
        raise socket.gaierror(socket.EAI_AGAIN, f"{host} was not resolved within {timeout:g} s")
    if lookup.error is not None:
        # Without this, the connection would wait for the name server again.
        raise lookup.error
    return lookup.addresses or [host]


def connect_by_address(host: str, timeout: float, connect: Callable[[str], Opened]) -> Opened:
    """Return the result of ``connect`` for the first address of a name for which it succeeds.

    Raises:
        OSError: the name was not resolved, or the error of the last address.
    """
    error = OSError(f"{host} has no address")
    for address in resolve(host, timeout):
        try:
            return connect(address)
        except OSError as exc:
            error = exc
    raise error


class _BoundedConnection:
    """Mixin for connections of redis-py: it resolves the name before the socket is opened."""

    host: str
    socket_connect_timeout: float | None
    #: The name, while ``host`` is one of its addresses.
    _named = ""

    def _connect(self) -> Any:
        connect: Any = super()._connect  # type: ignore[misc]  # of the class that this is mixed into
        if not self.socket_connect_timeout:
            return connect()

        def to(address: str) -> Any:
            self.host = address
            return connect()

        self._named = name = self.host
        try:
            return connect_by_address(name, self.socket_connect_timeout, to)
        finally:
            self.host = name

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        # A certificate is issued to the name.
        self.host = self._named or self.host
        wrap: Any = super()._wrap_socket_with_ssl  # type: ignore[misc]  # as above
        return wrap(sock)


def with_bounded_names(pool: ConnectionPool) -> ConnectionPool:
    """Make the new connections of a pool, and of its Sentinels, wait for a name no longer than for connecting."""
    cls: type[Any] = pool.connection_class
    if not issubclass(cls, UnixDomainSocketConnection | _BoundedConnection):
        pool.connection_class = type(cls.__name__, (_BoundedConnection, cls), {})
    manager: Any = getattr(pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        with_bounded_names(sentinel.connection_pool)
    return pool
