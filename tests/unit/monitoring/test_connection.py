"""States of a connection of the HTTP endpoint: each has its deadline, and decides which connection is closed first."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ha_beat.monitoring.http.connection import ConnectionPool, ConnectionState, HttpConnection, Limits
from ha_beat.testing import SettableClock
from tests.unit.monitoring.scene import Scene

LIMITS = Limits(head=5, idle=60, taking=10, lingering=2, streaming=3600)
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
STREAM = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Transport that keeps the answers. With ``connection`` set, the client reads none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.aborted = b"", False
        self.connection: HttpConnection | None = None

    def write(self, data: Any) -> None:
        self.written += data
        if self.connection is not None:
            self.connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def _ignore(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    set_write_buffer_limits = write_eof = pause_reading = resume_reading = _ignore


class Client:
    """Client of a pool, with its connection."""

    def __init__(self, pool: ConnectionPool, clock: SettableClock) -> None:
        self.transport = FakeTransport()
        loop: Any = SimpleNamespace(time=clock.elapsed)
        self.connection = HttpConnection(pool, loop)
        self.connection.connection_made(self.transport)
        self._clock = clock

    def state(self) -> tuple[ConnectionState, float]:
        """Return the state of the connection, and the seconds until its deadline."""
        return self.connection.state, round(self.connection.deadline - self._clock.elapsed(), 3)


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def pool() -> ConnectionPool:
    return ConnectionPool(Scene().site(), LIMITS)


@pytest.fixture
def client(pool, clock) -> Client:
    return Client(pool, clock)


def test_head_has_a_deadline_that_further_bytes_do_not_extend(client, clock):
    assert client.state() == (ConnectionState.HEAD, 5)
    for request in range(1, 3):
        clock.advance(1)
        client.connection.data_received(GET[:10])
        clock.advance(2)
        client.connection.data_received(GET[10:20])
        # The first head counts from the connection.
        assert client.state() == (ConnectionState.HEAD, 2 if request == 1 else 3)
        client.connection.data_received(GET[20:])
        assert client.state() == (ConnectionState.IDLE, 60)
        assert client.transport.written.count(b"HTTP/1.1 200") == request


def test_client_that_reads_no_answer_gets_the_next_one_once_it_reads(client, clock):
    client.transport.connection = client.connection
    client.connection.data_received(GET * 2)
    clock.advance(4)
    assert client.state() == (ConnectionState.TAKING, 6)
    assert client.transport.written.count(b"HTTP/1.1 200") == 1
    client.transport.connection = None
    client.connection.resume_writing()
    assert client.state() == (ConnectionState.IDLE, 60)
    assert client.transport.written.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    ("request_", "state"), [(CLOSE, (ConnectionState.LINGERING, 2)), (STREAM, (ConnectionState.STREAMING, 3600))]
)
def test_request_after_the_last_answer_is_discarded(client, request_, state):
    client.connection.data_received(request_)
    assert client.state() == state
    client.connection.data_received(GET)
    client.connection.resume_writing()
    assert client.state() == state
    assert client.transport.written.count(b"HTTP/1.1 200") == 1
    assert client.connection._http.trailing_data[0] == b""


def test_connection_past_its_deadline_is_aborted(client, pool, clock):
    clock.advance(5)
    pool.reap(clock.elapsed())
    assert not client.transport.aborted
    clock.advance(0.1)
    pool.reap(clock.elapsed())
    assert (client.transport.aborted, pool.open) == (True, {})


def test_connection_that_is_idle_longest_makes_room_for_a_new_one(clock):
    """A stream is not idle. If no connection is, the oldest one goes."""
    pool = ConnectionPool(Scene().site(), Limits(connections=3))
    stream, silent, probe = clients = [Client(pool, clock) for _ in range(3)]
    stream.connection.data_received(STREAM)
    clock.advance(1)
    probe.connection.data_received(GET)
    clock.advance(1)
    silent.connection.data_received(GET)
    clients += [Client(pool, clock)]
    assert [each.transport.aborted for each in clients] == [False, False, True, False]
    for each in (silent, clients[3]):
        each.connection.data_received(STREAM)
    clients += [Client(pool, clock)]
    assert [each.transport.aborted for each in clients] == [True, False, True, False, False]
