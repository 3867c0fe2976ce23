"""Servers of each topology, started on first use and kept for one test file."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.store.conftest import start_valkey
from tests.integration.topologies import certificates
from tests.support.servers import RedisCluster, RedisServer, SentinelCluster, free_port, need


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with need(RedisServer) as started:
        yield started


@pytest.fixture(scope="module")
def socket_server() -> Iterator[RedisServer]:
    with need(lambda: RedisServer(unixsocket=True, password="p@ss/w:rd?")) as started:
        yield started


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    with need(start_valkey) as started:
        yield started


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelCluster]:
    with need(lambda: SentinelCluster(password="secret")) as started:
        yield started


@pytest.fixture(scope="module")
def redis_cluster() -> Iterator[RedisCluster]:
    with need(RedisCluster) as started:
        yield started


@dataclass(frozen=True)
class TlsServer:
    """Redis that also listens with TLS and requires client certificates."""

    server: RedisServer
    port: int
    certificates: certificates.Certificates

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}/0"

    @property
    def client_options(self) -> dict[str, str]:
        made = self.certificates
        return {
            "ssl_ca_certs": str(made.authority),
            "ssl_certfile": str(made.client),
            "ssl_keyfile": str(made.client_key),
        }


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    made = certificates.make(tmp_path_factory.mktemp("certificates"))
    port = free_port()
    arguments = [
        *("--tls-port", str(port), "--tls-cert-file", str(made.server), "--tls-key-file", str(made.server_key)),
        *("--tls-ca-cert-file", str(made.authority)),
    ]
    with need(lambda: RedisServer(extra_args=arguments)) as started:
        yield TlsServer(started, port, made)
