"""Real servers for tests: each on a free port of 127.0.0.1, in its own process group, stopped by its pid.

A server that can't be started on this machine raises `PartMissing` with the reason. `need` turns that into a skip,
or into a failure if `CI=true`.
"""

from tests.support.servers.parts import LOCALHOST, Part, PartMissing, free_port, need, wait_for
from tests.support.servers.postgres import Postgres
from tests.support.servers.processes import Server, ServerProcess, find_program
from tests.support.servers.rabbitmq import RabbitMQ
from tests.support.servers.redis_server import RedisServer, redis_binary
from tests.support.servers.redis_topologies import RedisCluster, Sentinel, SentinelCluster

__all__ = [
    "LOCALHOST",
    "Part",
    "PartMissing",
    "Postgres",
    "RabbitMQ",
    "RedisCluster",
    "RedisServer",
    "Sentinel",
    "SentinelCluster",
    "Server",
    "ServerProcess",
    "find_program",
    "free_port",
    "need",
    "redis_binary",
    "wait_for",
]
