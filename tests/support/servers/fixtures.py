"""Fixtures of common servers."""

from collections.abc import Iterator

import pytest

from tests.support.servers.parts import need
from tests.support.servers.postgres import Postgres
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.redis_server import RedisServer


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Start a Redis for one test, which may stop, pause or kill it."""
    with need(RedisServer) as server:
        yield server


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    with need(RedisServer) as server:
        yield server


@pytest.fixture
def shared_redis(_session_redis: RedisServer) -> RedisServer:
    """Return the session's Redis, emptied. It runs, even if the previous test stopped or paused it."""
    _session_redis.revive().admin.flushall()
    _session_redis.admin.script_flush()
    return _session_redis


@pytest.fixture(scope="session")
def _session_postgres() -> Iterator[Postgres]:
    with need(Postgres) as server:
        yield server


@pytest.fixture
def session_postgres(_session_postgres: Postgres) -> Postgres:
    """Return the session's PostgreSQL. Tests may stop it; they leave its databases as they found them."""
    return _session_postgres.revive()


@pytest.fixture(scope="module")
def _module_rabbitmq() -> Iterator[RabbitMQ]:
    with need(RabbitMQ) as server:
        yield server


@pytest.fixture
def rabbitmq(_module_rabbitmq: RabbitMQ) -> RabbitMQ:
    """Return the module's RabbitMQ. Tests may stop or pause it."""
    return _module_rabbitmq.revive()
