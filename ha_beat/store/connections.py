"""Connections to Redis: one link for each thread.

A link connects at its first use, has short timeouts and never retries: only its user knows what a lost reply means. If
the server answers that it is not the right one, the link drops all its connections, so that the next command asks
Sentinel, DNS or the cluster again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from inspect import Parameter, signature
from typing import Any, Protocol

import redis
from redis import exceptions as redis_errors
from redis.connection import ConnectionPool, SSLConnection
from redis.sentinel import Sentinel as _Sentinel
from redis.sentinel import SentinelConnectionPool as _SentinelConnectionPool

from ha_beat.errors import ConfigurationError, StoreUnavailable
from ha_beat.store.name_resolution import with_bounded_names
from ha_beat.store.redis_errors import STALE, as_store_error, code_of, in_words, moved_to
from ha_beat.store.redis_urls import Address, hosts_of, in_redis_py, no_retry_options, pool_kwargs

_SENTINEL_PORT = 26379
_PORT = 6379

#: Largest number of redirections from node to node.
_REDIRECTIONS = 5

_TAKES_COMMAND = signature(ConnectionPool.get_connection).parameters["command_name"].default is Parameter.empty

# redis-py does not type these.
Sentinel: Callable[..., Any] = _Sentinel
SentinelConnectionPool: Callable[..., ConnectionPool] = _SentinelConnectionPool


class Link(Protocol):
    """Connections of one thread to a Redis server."""

    @property
    def sharded(self) -> bool:
        """True for a Redis Cluster, where presence is a shard channel."""
        ...

    def client(self) -> redis.Redis:
        """Return a client without retries. Call it at each use.

        Raises:
            StoreError: no server can be reached.
        """
        ...


class WatchedClient(redis.Redis):
    """Client that drops its connections after an error that shows that they lead to the wrong server."""

    def __init__(self, pool: ConnectionPool, on_error: Callable[[Exception], None] = lambda _: None) -> None:
        super().__init__(connection_pool=pool)
        self._on_error = on_error
        #: Connection that :meth:`read_again` keeps from one call to the next.
        self._kept: Any = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self._give_back()
        try:
            execute: Callable[..., Any] = super().execute_command
            return execute(*args, **options)
        except (redis_errors.RedisError, OSError) as exc:
            self._judge(exc)
            raise

    def read_again(self, packed: bytes) -> Any:
        """Send a packed command that only reads. It takes less than half the processor time of an ordinary one.

        The connection is kept until the next ordinary command, before which the pool checks it. If it has ended by the
        next call of this method, that raises ConnectionError.
        """
        # No other thread or signal handler may take the connection while it is in use.
        kept, self._kept = self._kept, None
        with self._connection(kept) as used:
            used.send_packed_command([packed], check_health=False)
            answer = used.read_response()
        self._give_back()
        self._kept = used
        return answer

    def execute_meanwhile(self, meanwhile: Callable[[], None], *args: Any) -> Any:
        """Send a command, call ``meanwhile``, then wait for the answer."""
        self._give_back()
        with self._connection() as used:
            used.send_command(*args)
            meanwhile()
            if used._sock is None:  # noqa: SLF001  # redis-py would fail with an AttributeError
                # A command of ``meanwhile`` has found that this is the wrong server.
                raise redis_errors.ConnectionError("the connection was closed before there was an answer")
            answer = used.read_response()
        self.connection_pool.release(used)
        return answer

    @contextmanager
    def _connection(self, kept: Any = None) -> Iterator[Any]:
        """Yield the kept connection or one of the pool. Release it if its command fails."""
        used = kept
        try:
            if used is None:
                used = _connection_of(self.connection_pool)
            yield used
        except BaseException as exc:
            if used is not None:
                if not isinstance(exc, redis_errors.ResponseError):
                    # Its reply may still arrive.
                    used.disconnect()
                self.connection_pool.release(used)
            if isinstance(exc, redis_errors.RedisError | OSError):
                self._judge(exc)
            raise

    def _give_back(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self.connection_pool.release(kept)

    def _judge(self, exc: Exception) -> None:
        if code_of(exc) in STALE:
            self.connection_pool.disconnect()
        self._on_error(exc)


def _connection_of(pool: ConnectionPool) -> Any:
    """Return a checked connection of the pool."""
    take: Callable[..., Any] = pool.get_connection
    # redis-py 5.2 needs a command here, and later versions warn of one.
    return take("EVALSHA") if _TAKES_COMMAND else take()


class PoolLink:
    """Link to the server that a connection pool leads to: that of a URL, or the primary that Sentinel names."""

    sharded = False

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self._client = WatchedClient(pool)

    def client(self) -> redis.Redis:
        return self._client


class ClusterLink:
    """Link to the node of a Redis Cluster that serves one key, and with it all keys of the same hash tag."""

    sharded = True

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float, key: str) -> None:
        """``url`` names one or more nodes: ``redis+cluster://host:port,host:port``.

        Raises:
            ConfigurationError: as in :func:`link_to`.
        """
        self._known, first = hosts_of(url, _PORT)
        self._kwargs = pool_kwargs(first, options, timeout)
        if self._kwargs.get("db"):
            raise ConfigurationError("ha_beat_redis_url: a Redis Cluster has only the database 0")
        self._key = key
        #: Address and client of the node that served the key last.
        self._node: tuple[Address, redis.Redis] | None = None
        #: True if a command has failed such that another node may serve the key now.
        self._doubtful = False
        _checked(lambda: ConnectionPool(**self._kwargs))

    def client(self) -> redis.Redis:
        node = self._node
        if node is None or self._doubtful:
            node = self._node = self._find()
            self._doubtful = False
            # The next search starts with this node.
            self._known = list(dict.fromkeys([node[0], *self._known]))
        return node[1]

    def _find(self) -> tuple[Address, redis.Redis]:
        last: Exception | None = None
        current = [self._node[0]] if self._node is not None else []
        for address in dict.fromkeys([*current, *self._known]):
            try:
                return self._follow(address)
            except (redis_errors.RedisError, OSError) as exc:
                # An error that a node answered says more than the silence of a dead one.
                if last is None or not code_of(last):
                    last = exc
        raise as_store_error(last) if last is not None else StoreUnavailable("no node is known", acted=False)

    def _follow(self, address: Address) -> tuple[Address, redis.Redis]:
        """Follow redirections until a node serves the key."""
        for _ in range(_REDIRECTIONS):
            client = self._client_of(address)
            try:
                client.hget(self._key, "nonce")
            except (redis_errors.RedisError, OSError) as exc:
                self._drop(client)
                moved = moved_to(exc)
                if moved is None:
                    raise
                address = (moved[0] or address[0], moved[1])
            else:
                if self._node is not None and self._node[1] is not client:
                    self._drop(self._node[1])
                return address, client
        raise redis_errors.ConnectionError("the nodes of the Redis Cluster refer to each other in a circle")

    def _client_of(self, address: Address) -> redis.Redis:
        if self._node is not None and self._node[0] == address:
            return self._node[1]
        pool: ConnectionPool = ConnectionPool(**{**self._kwargs, "host": address[0], "port": address[1]})
        return WatchedClient(with_bounded_names(pool), self._doubt)

    def _doubt(self, exc: Exception) -> None:
        if isinstance(exc, redis_errors.ConnectionError | redis_errors.TimeoutError | OSError) or code_of(exc) in STALE:
            self._doubtful = True

    def _drop(self, client: redis.Redis) -> None:
        if self._node is not None and self._node[1] is client:
            self._node = None
        with suppress(redis_errors.RedisError, OSError):
            client.connection_pool.disconnect()


def link_to(url: str, options: Mapping[str, Any], timeout: float, key: str) -> Link:
    """Return a link for a URL, without connecting.

    ``timeout`` is in seconds, for connecting and for each command. ``key`` is one of the cluster's keys. For Sentinel,
    ``options`` has ``master_name``, and ``sentinel_kwargs`` for the connections to the Sentinels.

    Raises:
        ConfigurationError: the URL is invalid, ``master_name`` is missing, or redis-py refuses an option.
    """
    scheme = url.partition("://")[0].lower()
    if scheme.endswith("+cluster"):
        return ClusterLink(url, options, timeout, key)
    if scheme == "sentinel":
        return PoolLink(_checked(_sentinel_pool_maker(url, options, timeout)))
    return PoolLink(_checked(lambda: ConnectionPool(**pool_kwargs(url, options, timeout))))


def _sentinel_pool_maker(url: str, options: Mapping[str, Any], timeout: float) -> Callable[[], ConnectionPool]:
    given = dict(options)
    name = given.pop("master_name", None)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            "ha_beat_redis_options: a sentinel:// URL needs 'master_name', the name under which the Sentinels "
            "know the primary"
        )
    addresses, first = hosts_of(url, _SENTINEL_PORT)
    # A Sentinel that hangs must leave time for the next one.
    patience = max(timeout / len(addresses), 0.1)
    for_sentinels = {**no_retry_options(patience), **in_redis_py(given.pop("sentinel_kwargs", None) or {})}
    others = int(given.pop("min_other_sentinels", 0))
    kwargs = pool_kwargs(first, given, timeout)
    for of_the_first in ("host", "port"):
        kwargs.pop(of_the_first, None)
    if kwargs.pop("connection_class", None) is SSLConnection:
        kwargs["ssl"] = True

    def make() -> ConnectionPool:
        sentinel = Sentinel(addresses, min_other_sentinels=others, sentinel_kwargs=for_sentinels)
        return SentinelConnectionPool(name, sentinel, **kwargs)

    return make


def _checked(make: Callable[[], ConnectionPool]) -> ConnectionPool:
    """Return the pool if redis-py accepts its options. Opens no connection.

    Raises:
        ConfigurationError: redis-py refuses the options.
    """
    try:
        make().make_connection()
        return with_bounded_names(make())
    except ImportError as exc:
        raise ConfigurationError(f"ha_beat_redis_options: {exc}") from exc
    except (TypeError, ValueError, AttributeError, redis_errors.RedisError) as exc:
        raise ConfigurationError(f"ha_beat_redis_options: redis-py cannot use them: {in_words(exc)}") from exc


def sentinels_of(client: redis.Redis) -> list[redis.Redis]:
    """Return a client of each Sentinel that names this client's primary, none without Sentinel."""
    manager: Any = getattr(client.connection_pool, "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)
