"""The way to the broker that Celery is configured with."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from ha_beat.dispatch.capture import CapturingConnection
from ha_beat.errors import StoreUnavailable


class BrokerLink:
    """The broker's Redis, by way of kombu: whatever URL and options Celery connects with, this does."""

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
            self._client = redis.Redis(connection_pool=self.channel().pool)
        return self._client

    def producer(self) -> Any:
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self.channel(), auto_declare=False)
        return self._producer

    def _open(self) -> Any:
        connection = CapturingConnection.like(
            self._app.connection_for_write(),
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            retry_on_timeout=False,
        )
        try:
            return connection.channel()
        except (OperationalError, KombuError, RedisError, OSError) as exc:
            raise StoreUnavailable(f"{type(exc).__name__}: {exc}", acted=False) from exc
