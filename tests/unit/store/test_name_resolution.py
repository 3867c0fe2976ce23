"""Name server that does not answer: connecting fails in time, whatever the client."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis.connection import ConnectionPool
from redis.exceptions import RedisError

from ha_beat.dispatch.brokers.amqp_adapter import AmqpAdapter
from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.errors import StoreUnavailable
from ha_beat.store.connections import link_to
from ha_beat.store.name_resolution import resolve, with_bounded_names

TIMEOUT = 0.2


@pytest.fixture
def silent_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names that were looked up, none of which is answered."""
    asked: list[str] = []
    over = threading.Event()

    def getaddrinfo(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        over.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    over.set()


def ping(url: str, **options: Any) -> Callable[[], object]:
    return lambda: link_to(url, options, TIMEOUT, "key").client().execute_command("PING")


def broker(url: str, **options: Any) -> Celery:
    app = Celery("names", broker=url, set_as_current=False)
    app.conf.broker_transport_options = options
    return app


# Each with names that no other uses: a lookup that an earlier test left is joined, not repeated.
@pytest.mark.parametrize(
    "connect",
    [
        ping("redis://url.example/0"),
        ping("rediss://tls.example/0"),
        ping("sentinel://one.example;sentinel://two.example/0", master_name="m"),
        ping("redis+cluster://cluster.example"),
        lambda: BrokerLink(broker("redis://broker.example"), TIMEOUT).client(),
        lambda: BrokerLink(broker("sentinel://sentinel.example", master_name="m"), TIMEOUT).client(),
        lambda: AmqpAdapter(broker("amqp://first.example;amqp://second.example"), TIMEOUT).open(),
    ],
    ids=["url", "tls", "sentinel", "cluster", "broker", "sentinel broker", "amqp"],
)
def test_connecting_fails_in_time_without_a_name_server(silent_name_server: list[str], connect: Any) -> None:
    began = time.monotonic()
    with pytest.raises((StoreUnavailable, RedisError, OperationalError)):
        connect()
    assert time.monotonic() - began < 10 * TIMEOUT
    assert silent_name_server


def test_name_without_an_answer_costs_its_callers_one_timeout(silent_name_server: list[str]) -> None:
    """Callers in turn wait for one lookup together. Numeric addresses are not looked up."""
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(socket.gaierror):
            resolve("redis.test", TIMEOUT)
    assert time.monotonic() - began < 3 * TIMEOUT
    for address in ("127.0.0.1", "::1"):
        assert resolve(address, TIMEOUT) == [address]
    assert silent_name_server == ["redis.test"]


def found(address: str) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]


def test_name_that_is_found_late_serves_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lookup takes longer than the timeout."""
    lookup = {"late.test": lambda: time.sleep(2 * TIMEOUT) or found("127.0.0.9")}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: lookup[host]())
    with pytest.raises(socket.gaierror):
        resolve("late.test", TIMEOUT)
    time.sleep(2 * TIMEOUT)
    assert resolve("late.test", TIMEOUT) == ["127.0.0.9"]


def redis_connection() -> None:
    pool = with_bounded_names(ConnectionPool.from_url("rediss://twice.test:1", socket_connect_timeout=TIMEOUT))
    with pytest.raises(RedisError, match=r"twice\.test:1"):
        pool.make_connection().connect()


def amqp_connection() -> None:
    with pytest.raises(OperationalError, match="refused"):
        AmqpAdapter(broker("amqp://unknown.test:1;amqp://twice.test:1"), TIMEOUT).open()


@pytest.mark.parametrize("connect", [redis_connection, amqp_connection])
def test_connection_resolves_its_name_only_in_the_bounded_thread(
    monkeypatch: pytest.MonkeyPatch, connect: Callable[[], None]
) -> None:
    """A second lookup could block. The next address follows one that refuses, and the next host an unknown name."""
    real, opened = socket.getaddrinfo, []

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        if not host.endswith(".test"):
            opened.append(host)
            return real(host, *args, **options)
        assert threading.current_thread().name == "ha_beat-dns"
        if host == "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return found("127.0.0.1") + found("127.0.0.2")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    connect()
    assert opened == ["127.0.0.1", "127.0.0.2"]
