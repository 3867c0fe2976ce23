"""Name server that does not answer: connecting fails in time, whatever the client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis.exceptions import RedisError

from ha_beat.dispatch.broker import BrokerLink
from ha_beat.dispatch.broker_adapters import AmqpAdapter
from ha_beat.errors import StoreUnavailable
from ha_beat.store.connections import link_to
from ha_beat.store.name_resolution import await_name

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
    with pytest.raises((StoreUnavailable, RedisError, OSError)):
        connect()
    assert time.monotonic() - began < 10 * TIMEOUT
    assert silent_name_server


def test_one_lookup_of_a_name_is_pending(silent_name_server: list[str]) -> None:
    """Each retry waits for it. Numeric addresses are not looked up."""
    for _ in range(3):
        with pytest.raises(socket.gaierror):
            await_name("redis.test", TIMEOUT)
    for address in ("127.0.0.1", "::1"):
        await_name(address, TIMEOUT)
    assert silent_name_server == ["redis.test"]
