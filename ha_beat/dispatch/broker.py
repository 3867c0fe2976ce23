"""The way to the broker that Celery is configured with."""

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
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.store.connections import FEWEST_CONNECTIONS, WatchedClient
from ha_beat.store.redis_errors import as_store_error


class BrokerLink:
    """The broker's Redis, by way of kombu: whatever URL and options Celery connects with, this does."""

    #: kombu has no transport for a Redis Cluster.
    sharded = False

    def __init__(self, app: Celery, timeout: float) -> None:
        self._app = app
        self._timeout = timeout
        self._channel: Any = None
        self._client: redis.Redis | None = None
        self._producer: Any = None

    def channel(self) -> Any:
        """A kombu channel that collects what is published through it."""
        if self._channel is None:
            self._channel = self._open()
        return self._channel

    def client(self) -> redis.Redis:
        if self._client is None:
            # Not the channel's own client: that one prefixes some keys and not others.
            self._client = WatchedClient(self.channel().pool)
        return self._client

    def producer(self) -> Any:
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
            # Not Connection.channel(): that one waits for seconds and tries a second time.
            return capturing.transport.create_channel(capturing.transport)
        except (OperationalError, KombuError, RedisError, OSError) as exc:
            raise _before_anything(exc) from exc

    def _for_sentinels(self, connection: Any) -> dict[str, Any]:
        """The user's options for the connections to the Sentinels, on top of short timeouts without retries."""
        given = (connection.transport_options or {}).get("sentinel_kwargs") or {}
        patience = max(self._timeout / max(len(connection.alt), 1), 0.1)
        retry: Any = Retry(NoBackoff(), 0)
        return {"socket_timeout": patience, "socket_connect_timeout": patience, "retry": retry, **given}


def _before_anything(exc: Exception) -> StoreError:
    return StoreUnavailable(str(as_store_error(exc)), acted=False)
