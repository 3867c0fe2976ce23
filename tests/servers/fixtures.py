"""The Redis that most tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.parts import need
from tests.servers.redis_server import RedisServer


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own, which it may stop, pause or kill."""
    with need(RedisServer) as server:
        yield server


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    with need(RedisServer) as server:
        yield server


@pytest.fixture
def shared_redis(_session_redis: RedisServer) -> RedisServer:
    """The session's Redis, emptied for this test: for tests that leave the server itself alone."""
    _session_redis.admin.flushall()
    _session_redis.admin.script_flush()
    return _session_redis
