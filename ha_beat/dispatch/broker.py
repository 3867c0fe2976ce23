"""Connection to the broker's Redis with Celery's own settings."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ha_beat.dispatch.capture import CapturingConnection
from ha_beat.dispatch.message import DeclaringOnce
from ha_beat.errors import StoreUnavailable
from ha_beat.store.connections import FEWEST_CONNECTIONS, WatchedClient
from ha_beat.store.redis_errors import as_store_error


class BrokerLink:
    """Redis of the broker, connected through kombu with the URL and options of the Celery app."""

    #: kombu has no transport for a Redis Cluster.
    sharded = False

    def __init__(self, app: Celery, timeout: float) -> None:
        self._app = app
        self._timeout = timeout
        self._channel: Any = None
        self._client: redis.Redis | None = None
        self._producer: Any = None

    def channel(self) -> Any:
        """Return a kombu channel that collects the commands of published messages."""
        if self._channel is None:
            self._channel = self._open()
        return self._channel

    def client(self) -> redis.Redis:
        """Return a client of the broker's Redis."""
        if self._client is None:
            # Not the channel's own client, which prefixes only some keys.
            self._client = WatchedClient(self.channel().pool)
        return self._client

    def producer(self) -> Any:
        """Return a producer on the collecting channel."""
        if self._producer is None:
            producer = type("Producer", (DeclaringOnce, self._app.amqp.Producer), {})
            self._producer = producer(self.channel(), auto_declare=False)
        return self._producer

    def _open(self) -> Any:
        connection = self._app.connection_for_write()
        options: dict[str, Any] = {
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            "retry_on_timeout": False,
        }
        most = (connection.transport_options or {}).get("max_connections")
        if isinstance(most, int):
            options["max_connections"] = max(most, FEWEST_CONNECTIONS)
        if "sentinel" in connection.transport_cls:
            options["sentinel_kwargs"] = self._for_sentinels(connection)
        capturing = CapturingConnection.like(connection, **options)
        try:
            # Not Connection.channel(), which waits for seconds and tries again.
            return capturing.transport.create_channel(capturing.transport)
        except (OperationalError, KombuError, RedisError, OSError) as exc:
            raise StoreUnavailable(str(as_store_error(exc)), acted=False) from exc

    def _for_sentinels(self, connection: Any) -> dict[str, Any]:
        """Return the options for connections to Sentinels: short timeouts without retries, then the user's options."""
        given = (connection.transport_options or {}).get("sentinel_kwargs") or {}
        timeout = max(self._timeout / max(len(connection.alt), 1), 0.1)
        retry: Any = Retry(NoBackoff(), 0)
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry, **given}
