"""Connection to a broker that is Redis, with Celery's own settings."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat.dispatch.messages.build import OccurrenceProducer
from ha_beat.dispatch.messages.build_errors import causes, is_io_error, mapped_broker_errors
from ha_beat.dispatch.messages.capture import CapturingConnection
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.store.connections import WatchedClient
from ha_beat.store.redis_errors import as_store_error
from ha_beat.store.redis_urls import FEWEST_CONNECTIONS


class BrokerLink:
    """Redis of the broker, connected through kombu with the URL and options of the Celery app."""

    #: kombu has no transport for a Redis Cluster.
    sharded = False

    def __init__(self, app: Celery, timeout: float, *, failover: bool = False) -> None:
        """``failover``: if the broker is a list, connect to the first server that answers, as Celery does.

        Without ``failover`` only the first server is used: a lease must not move to an unrelated Redis.
        """
        self._app = app
        self._timeout = timeout
        self._failover = failover
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
            # The channel's own client would prefix some of the keys.
            self._client = WatchedClient(self.channel().pool, self._failed)
        return self._client

    def _failed(self, exc: Exception) -> None:
        if self._failover and isinstance(as_store_error(exc), StoreUnavailable):
            # The next use connects to a server that answers.
            self._channel = self._client = self._producer = None

    def producer(self) -> Any:
        """Return a producer on the collecting channel."""
        if self._producer is None:
            producer = type("Producer", (OccurrenceProducer, self._app.amqp.Producer), {})
            self._producer = producer(self.channel(), auto_declare=False)
        return self._producer

    def broker_error(self, exc: BaseException) -> StoreError | None:
        """Return the broker's failure that led to an exception, or ``None`` if there was none.

        The channel notes its own failed command. The entry's code may also have reached the broker through another
        connection, so an error of I/O leads to a round trip to the broker.
        """
        failed = self._channel.failed_command if self._channel is not None else None
        if failed is not None and any(each is failed.error for each in causes(exc)):
            return as_store_error(failed.error, failed.command)
        if is_io_error(exc):
            try:
                with mapped_broker_errors():
                    self.client().ping()
            except StoreUnavailable as error:
                return error
            except StoreError:
                # The server answered, although it permits no PING.
                pass
        return None

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
        is_sentinel = "sentinel" in connection.transport_cls
        urls = connection.alt if self._failover and not is_sentinel else []
        failure = StoreUnavailable("no broker is known", acted=False)
        for url in urls or [""]:
            capturing = CapturingConnection.like(connection, **options)
            if url:
                capturing.switch(url)
            try:
                # Connection.channel() would retry for seconds.
                with mapped_broker_errors():
                    return capturing.transport.create_channel(capturing.transport)
            except StoreError as exc:
                failure = StoreUnavailable.not_acted(exc)
        raise failure

    def _for_sentinels(self, connection: Any) -> dict[str, Any]:
        """Return the options for connections to Sentinels: short timeouts without retries, then the user's options."""
        given = (connection.transport_options or {}).get("sentinel_kwargs") or {}
        timeout = max(self._timeout / max(len(connection.alt), 1), 0.1)
        retry: Any = Retry(NoBackoff(), 0)
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry, **given}
