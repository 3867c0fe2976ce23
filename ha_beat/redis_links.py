"""Connections to Redis, one link for each thread that talks.

A link connects when it is first asked to, never retries by itself and has short timeouts: whoever uses it knows what a
lost reply means to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


class Link(Protocol):
    """One way to a Redis server."""

    def client(self) -> redis.Redis:
        """A client without retries.

        Raises:
            StoreUnavailable: there is no connection to be had.
        """
        ...


class UrlLink:
    """A Redis given by URL."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        self._url = url
        retry: Any = Retry(NoBackoff(), 0)
        self._options = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": retry,
            **options,
        }
        self._client: redis.Redis | None = None

    def client(self) -> redis.Redis:
        if self._client is None:
            self._client = redis.Redis.from_url(self._url, **self._options)
        return self._client
