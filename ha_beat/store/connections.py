"""Connections to Redis: one link for each thread.

A link connects at its first use, has short timeouts and never retries: only its user knows what a lost reply means. If
the server answers that it is not the right one, the link drops all its connections, so that the next command asks
Sentinel, DNS or the cluster again.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import Parameter, signature
from typing import Any, Protocol
from urllib.parse import urlsplit

import redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, SSLConnection
from redis.connection import parse_url as _parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel as _Sentinel
from redis.sentinel import SentinelConnectionPool as _SentinelConnectionPool

from ha_beat.errors import ConfigurationError, StoreUnavailable
from ha_beat.store.name_resolution import with_bounded_names
from ha_beat.store.redis_errors import STALE, as_store_error, code_of, in_words, moved_to

_SENTINEL_PORT = 26379
_PORT = 6379

#: Largest number of redirections from node to node.
_REDIRECTIONS = 5

#: Connections that a link may need at once: for presence, for a command, and for another in a signal handler.
FEWEST_CONNECTIONS = 4

_TAKES_COMMAND = signature(ConnectionPool.get_connection).parameters["command_name"].default is Parameter.empty

Address = tuple[str, int]

# redis-py does not type these.
parse_url: Callable[[str], Mapping[str, Any]] = _parse_url
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

        The connection is kept until the next ordinary command, for which the pool checks it. One that has ended
        meanwhile raises ConnectionError.
        """
        # While it is in use, no other thread or signal handler may take it.
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
        """Yield a connection, a new one of the pool unless one is given. Release it if its command fails."""
        used = kept
        try:
            if used is None:
                used = _connection_of(self.connection_pool)
            yield used
        except BaseException as exc:
            if used is not None:
                if not isinstance(exc, redis_errors.ResponseError):
                    # Its reply may be still to come.
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


class UrlLink:
    """Redis with a URL: TCP, TLS or a Unix socket."""

    sharded = False

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        """``timeout`` is in seconds, for connecting and for each command.

        Raises:
            ConfigurationError: redis-py does not know an option, or cannot use its value.
        """
        self._pool = _checked(lambda: _pool(url, options, timeout))
        self._client: redis.Redis | None = None

    def client(self) -> redis.Redis:
        if self._client is None:
            self._client = WatchedClient(self._pool)
        return self._client


class SentinelLink:
    """Primary that Sentinel names."""

    sharded = False

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        """``options`` has ``master_name``, and ``sentinel_kwargs`` for the connections to the Sentinels.

        Raises:
            ConfigurationError: ``master_name`` is missing, or as in :class:`UrlLink`.
        """
        given = dict(options)
        name = given.pop("master_name", None)
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                "ha_beat_redis_options: a sentinel:// URL needs 'master_name', the name under which the Sentinels "
                "know the primary"
            )
        addresses, first = _addresses(url, _SENTINEL_PORT)
        # A Sentinel that hangs must leave time for the next one.
        patience = max(timeout / len(addresses), 0.1)
        for_sentinels = {**_no_retry_options(patience), **_in_redis_py(given.pop("sentinel_kwargs", None) or {})}
        others = int(given.pop("min_other_sentinels", 0))
        kwargs = _pool_kwargs(first, given, timeout)
        for name_of_option in ("host", "port"):
            kwargs.pop(name_of_option, None)
        if kwargs.pop("connection_class", None) is SSLConnection:
            kwargs["ssl"] = True

        def make() -> ConnectionPool:
            sentinel = Sentinel(addresses, min_other_sentinels=others, sentinel_kwargs=for_sentinels)
            return SentinelConnectionPool(name, sentinel, **kwargs)

        self._pool = _checked(make)
        self._client: redis.Redis | None = None

    def client(self) -> redis.Redis:
        if self._client is None:
            self._client = WatchedClient(self._pool)
        return self._client


class ClusterLink:
    """Node of a Redis Cluster that serves one key, and with it all keys of the same hash tag."""

    sharded = True

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float, key: str) -> None:
        """``url`` names one or more nodes: ``redis+cluster://host:port,host:port``.

        Raises:
            ConfigurationError: as in :class:`UrlLink`.
        """
        self._known, first = _addresses(url, _PORT)
        self._kwargs = _pool_kwargs(first, options, timeout)
        if self._kwargs.get("db"):
            raise ConfigurationError("ha_beat_redis_url: a Redis Cluster has only the database 0")
        self._key = key
        self._node: tuple[Address, redis.Redis] | None = None
        self._doubtful = False
        _checked(lambda: ConnectionPool(**self._kwargs))

    def client(self) -> redis.Redis:
        if self._node is None or self._doubtful:
            self._find()
        if self._node is None:
            raise StoreUnavailable("no node of the Redis Cluster answers", acted=False)
        return self._node[1]

    def _find(self) -> None:
        last: Exception | None = None
        current = [self._node[0]] if self._node is not None else []
        for address in dict.fromkeys([*current, *self._known]):
            try:
                self._follow(address)
            except (redis_errors.RedisError, OSError) as exc:
                # An error that a node answered says more than the silence of a dead one.
                if last is None or not code_of(last):
                    last = exc
            else:
                self._doubtful = False
                return
        raise as_store_error(last) if last is not None else StoreUnavailable("no node is known", acted=False)

    def _follow(self, address: Address) -> None:
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
                self._use(address, client)
                return
        raise redis_errors.ConnectionError("the nodes of the Redis Cluster refer to each other in a circle")

    def _use(self, address: Address, client: redis.Redis) -> None:
        if self._node is not None and self._node[1] is not client:
            self._drop(self._node[1])
        self._node = address, client
        # This node is asked first the next time.
        self._known = list(dict.fromkeys([address, *self._known]))

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
    """Return a link for a URL, without connecting. ``key`` is one of the cluster's keys; ``timeout`` is in seconds.

    Raises:
        ConfigurationError: the URL or the options are invalid.
    """
    scheme = url.partition("://")[0].lower()
    if scheme == "sentinel":
        return SentinelLink(url, options, timeout)
    if scheme.endswith("+cluster"):
        return ClusterLink(url, options, timeout, key)
    return UrlLink(url, options, timeout)


def sentinels_of(client: redis.Redis) -> list[redis.Redis]:
    """Return a client of each Sentinel that names this client's primary, none without Sentinel."""
    manager: Any = getattr(client.connection_pool, "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


# --- URLs and options


def _pool(url: str, options: Mapping[str, Any], timeout: float) -> ConnectionPool:
    return ConnectionPool(**_pool_kwargs(url, options, timeout))


def _pool_kwargs(url: str, options: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Return the arguments of redis-py's pool. The options override the URL."""
    try:
        found = parse_url(_as_redis_py_spells(url))
    except ValueError as exc:
        raise _unreadable(exc) from None
    kwargs = {**_no_retry_options(timeout), **_in_redis_py(found), **_in_redis_py(options)}
    # A field of another program that is no UTF-8 would make the whole reply unreadable.
    kwargs["decode_responses"] = False
    if kwargs.pop("ssl", False):
        kwargs["connection_class"] = SSLConnection
    if isinstance(kwargs.get("max_connections"), int):
        kwargs["max_connections"] = max(kwargs["max_connections"], FEWEST_CONNECTIONS)
    return kwargs


def _no_retry_options(timeout: float) -> dict[str, Any]:
    """Return options for short timeouts without retries."""
    retry: Any = Retry(NoBackoff(), 0)
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry}


def _as_redis_py_spells(url: str) -> str:
    """Return a URL of Celery or kombu as redis-py writes it."""
    scheme, _, rest = url.strip().partition("://")
    scheme = scheme.lower()
    if scheme == "redis+socket":
        path, question, query = rest.partition("?")
        return f"unix://{path}{question}{query.replace('virtual_host=', 'db=')}"
    return f"{scheme}://{rest}"


_REQUIREMENTS = {"cert_none": "none", "cert_optional": "optional", "cert_required": "required"}


def _in_redis_py(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as redis-py spells them, from Celery's spelling."""
    found = dict(options)
    wanted = found.get("ssl_cert_reqs")
    if isinstance(wanted, ssl.VerifyMode):
        wanted = wanted.name
    if isinstance(wanted, str):
        word = wanted.lower()
        found["ssl_cert_reqs"] = _REQUIREMENTS.get(word, word)
        if found["ssl_cert_reqs"] == "none":
            # Python refuses to check the host name of a certificate that it does not verify.
            found.setdefault("ssl_check_hostname", False)
    for name in ("protocol", "db"):
        if isinstance(found.get(name), str) and found[name].isdecimal():
            found[name] = int(found[name])
    check = found.get("ssl_check_hostname")
    if isinstance(check, str):
        found["ssl_check_hostname"] = check.lower() in ("1", "true", "yes", "on")
    return found


def _addresses(url: str, default_port: int) -> tuple[list[Address], str]:
    """Return the hosts of a URL with several, and a ``redis://`` URL of the first one with the remaining parts.

    Both ``sentinel://h1:26379;sentinel://h2:26379/0`` and ``redis+cluster://user:password@h1:7000,h2:7000?x=y``.
    """
    scheme, _, rest = url.strip().partition("://")
    secure = scheme.lower().startswith("rediss")
    front, question, query = rest.partition("?")
    parts = [part.partition("://")[2] or part for part in _split(front)]
    userinfo = next((part.rpartition("@")[0] for part in parts if "@" in part), "")
    path = next((found for part in parts if (found := part.rpartition("@")[2].partition("/")[2])), "")
    addresses = []
    for part in parts:
        host_and_port = part.rpartition("@")[2].partition("/")[0]
        if not host_and_port:
            continue
        try:
            split = urlsplit(f"//{host_and_port}")
            addresses.append((split.hostname or "localhost", split.port or default_port))
        except ValueError as exc:
            raise _unreadable(exc) from None
    if not addresses:
        raise ConfigurationError("ha_beat_redis_url names no host")
    host, port = addresses[0]
    shown = f"[{host}]" if ":" in host else host
    at = f"{userinfo}@" if userinfo else ""
    return addresses, f"{'rediss' if secure else 'redis'}://{at}{shown}:{port}/{path}{question}{query}"


def _unreadable(exc: ValueError) -> ConfigurationError:
    """Return an error without Python's text about a port, which may be a part of an unescaped password."""
    said = str(exc)
    if not said.startswith("Invalid value for '"):
        said = "no host and port can be read from it; write / ; , @ in a password as %2F and the like"
    return ConfigurationError(f"ha_beat_redis_url: {said}")


def _split(front: str) -> Sequence[str]:
    return [part.strip() for part in front.replace(",", ";").split(";") if part.strip()]


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
