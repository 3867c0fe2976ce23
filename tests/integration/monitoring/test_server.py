"""Tests of the endpoint against odd, slow and greedy clients."""

import contextlib
import errno
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ha_beat.errors import ConfigurationError
from ha_beat.monitoring.http.address import Endpoint, advertised_url, check_bind, choose_endpoint
from ha_beat.monitoring.http.connection import Limits
from ha_beat.monitoring.http.server import HttpServer
from tests.integration.monitoring.support import LOCALHOST, ask, send_raw, serving
from tests.support.log_format import actions
from tests.support.servers import free_port, wait_for
from tests.unit.monitoring.scene import Scene

PATHS = ("/livez", "/readyz", "/leader", "/status", "/metrics", "/")


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    with serving() as server:
        yield server


def port_of(server: HttpServer) -> int:
    return server.address[1]


def connected(server: HttpServer, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection((LOCALHOST, port_of(server)), timeout)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def lives(server: HttpServer) -> bool:
    """True if a probe on a new connection is answered."""
    return ask(port_of(server), "/livez").status == 200


def test_head_equals_get_without_the_body(server):
    for path in PATHS:
        got, head = ask(port_of(server), path), ask(port_of(server), path, "HEAD")
        assert (got.status, head.text) == (head.status, "")
        if path not in {"/metrics", "/status"}:
            assert got.headers["content-length"] == head.headers["content-length"]


def test_connection_serves_several_requests_in_order(server):
    with connected(server) as client:
        for _ in range(3):
            client.sendall(get("/livez"))
            assert client.recv(4096).endswith(b"live\n")
    assert send_raw(port_of(server), get("/livez") * 5, first_byte=30.0).count(b"HTTP/1.1 200") == 5


def test_missing_descriptors_are_logged_once_per_incident(server, caplog):
    """asyncio reports it each second while the server cannot accept a probe."""
    loop = server._loop
    full = {"message": "out of system resource", "exception": OSError(errno.EMFILE, "Too many open files")}
    for times in (1, 2):
        for _ in range(3):
            loop.call_soon_threadsafe(loop.call_exception_handler, full)
        wait_for(lambda times=times: actions(caplog).count("http_exhausted") == times, 20, "a line")
        assert lives(server)
    assert actions(caplog).count("http_exhausted") == 2


def test_unread_answers_are_not_buffered_without_limit():
    """A client that sends thousands of requests and reads no answer must not fill the memory."""
    with serving(Limits(taking=1.0)) as server:
        with connected(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(1.0)
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 50_000_000:
                    sent += client.send(get("/") * 100)
            assert sent < 50_000_000
            assert lives(server)
        wait_for(lambda: not server.connections.open, 10, "the end of the greedy connection")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", b"431"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: nonsense\r\n\r\n", b"501"),
        (b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\nhello", b"405"),
        (b"GET /livez HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /livez?probe=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789", b"200"),
        (b"CONNECT /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", b"200"),
    ],
)
def test_odd_request_gets_a_fitting_status(server, data, status):
    reply = send_raw(port_of(server), data, first_byte=30.0)
    assert reply.split(b" ", 2)[1:2] == [status], reply[:200]
    assert lives(server)


def test_answer_reaches_a_client_that_is_still_sending(server):
    """Closing with unread input would reset the connection, and the client would lose the answer."""
    with socket.create_connection((LOCALHOST, port_of(server)), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 5000)
        time.sleep(0.3)
        for _ in range(5):
            client.sendall(b"A: b\r\n" * 1000)
            time.sleep(0.05)
        assert client.recv(1000).split(b" ", 2)[1] == b"431"
        assert client.recv(1000) == b""


PIECES = [b"GET / HTTP/1.1\r\n", b"HEAD /status HTTP/1.1\r\n", b"GET /events HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n"]
PIECES += [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"]
PIECES += [b"Expect: 100-continue\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(PIECES)), max_size=12))
def test_arbitrary_bytes_do_not_break_the_server(server, pieces):
    with connected(server) as client:
        client.settimeout(0.05)
        found = b""
        with contextlib.suppress(OSError):
            for piece in pieces:
                client.sendall(piece)
            while chunk := client.recv(65536):
                found += chunk
    assert b"HTTP/1.1 500" not in found
    assert lives(server)


def test_unexpected_exception_in_a_connection_is_logged(caplog):
    site = Scene().site()
    site.answer = lambda *_: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with serving(site=site) as server, caplog.at_level("ERROR", "ha_beat"):
        send_raw(port_of(server), get("/"))
        (record,) = (record for record in caplog.records if record.action == "http_error")
        assert record.exc_info[0] is ZeroDivisionError


def test_probe_is_answered_despite_2000_slow_clients():
    with serving() as server, contextlib.ExitStack() as stack:
        slow = []
        for _ in range(2000):
            slow.append(stack.enter_context(connected(server)))
            with contextlib.suppress(OSError):
                slow[-1].send(b"GET /livez HTTP/1.1\r\nX: ")
        for _ in range(5):
            assert lives(server)
            for client in slow:
                with contextlib.suppress(OSError):
                    client.send(b"a")
        assert len(server.connections.open) <= server.connections.limits.connections


def test_slow_bytes_do_not_extend_the_deadline():
    with serving(Limits(head=1.0)) as server, contextlib.ExitStack() as stack:
        client = stack.enter_context(connected(server, 15))
        ended = threading.Event()

        def trickle():
            with contextlib.suppress(OSError):
                while not ended.wait(0.1):
                    client.send(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with contextlib.suppress(ConnectionError):
                assert client.recv(100) == b""
        finally:
            ended.set()
            thread.join()


def read_event(client: socket.socket) -> bytes:
    found = b""
    while b"\ndata: " not in found or not found.rstrip(b"\r\n0").endswith(b"}"):
        found += client.recv(65536)
    return found


def test_streams_get_updates_and_are_limited_in_number():
    with serving(Limits(streams=2)) as server, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(2):
            client = stack.enter_context(connected(server, 10))
            client.sendall(get("/events"))
            first = read_event(client)
            assert b"text/event-stream" in first
            assert b'"cluster":"shop"' in first
            clients.append(client)
        assert ask(port_of(server), "/events").status == 503
        assert b'"cluster":"shop"' in read_event(clients[0])
        clients[0].close()
        wait_for(lambda: len(server.connections.streams) == 1, 10, "the end of the closed page")
        assert ask(port_of(server), "/events", "HEAD").status == 200


def one_port(port: int) -> range:
    return range(port, port + 1)


@contextlib.contextmanager
def taken_port() -> Iterator[tuple[socket.socket, int]]:
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        yield taken, taken.getsockname()[1]


def test_replicas_share_a_range_of_ports():
    """Each replica listens before it reports its port. Without a free port beat does not start."""
    first = free_port()
    ports = range(first, first + 2)
    chosen = [choose_endpoint(LOCALHOST, ports) for _ in ports]
    try:
        assert [endpoint.port for endpoint in chosen] == list(ports)
        with pytest.raises(ConfigurationError, match="every port is taken"):
            check_bind(LOCALHOST, ports)
        with serving(endpoint=chosen[1]):
            assert ask(ports[1], "/livez").status == 200
    finally:
        for endpoint in chosen:
            endpoint.sock.close()


def test_check_bind_rejects_taken_port_and_bad_address():
    match = r"ha_beat_http_bind=127.0.0.1:\d+: the port is taken"
    with taken_port() as (_, port), pytest.raises(ConfigurationError, match=match):
        check_bind(LOCALHOST, one_port(port))
    with pytest.raises(ConfigurationError, match=r"ha_beat_http_bind=no\.such\.host\.invalid:80: "):
        check_bind("no.such.host.invalid", one_port(80))
    check_bind(LOCALHOST, one_port(0))


def test_missing_library_is_a_configuration_error():
    program = (
        "import sys; sys.modules['h11'] = None\n"
        "from ha_beat.monitoring.http.address import check_bind\n"
        "try: check_bind('127.0.0.1', range(1))\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=200)
    assert printed.stdout == (
        "ConfigurationError ha_beat_http_bind needs the library h11: install it with pip install 'ha-beat[http]'\n"
    )


def test_port_taken_after_the_start_is_retried(monkeypatch):
    """Another process may take the port between the check and the first turn. Scheduling continues."""
    monkeypatch.setattr("ha_beat.monitoring.http.server._BIND_RETRY", 0.1)
    with taken_port() as (taken, port):
        server = HttpServer(Scene().site(), Endpoint(LOCALHOST, port))
        server.thread.keep_running()
        try:
            assert not server.serving.wait(0.5)
            taken.close()
            assert server.serving.wait(10)
            assert lives(server)
        finally:
            server.stop()


def test_stop_frees_the_port():
    with serving() as server:
        port = port_of(server)
    wait_for(lambda: check_bind(LOCALHOST, one_port(port)) is None, 10, "a free port")


def test_unspecified_address_serves_ipv4_and_ipv6():
    try:
        check_bind("::", one_port(0))
    except ConfigurationError:
        pytest.skip("this machine has no IPv6")
    with serving(endpoint=Endpoint("::", 0)) as server:
        assert lives(server)


@pytest.mark.parametrize(
    ("host", "port", "pod_ip", "url"),
    [
        ("10.0.0.7", 8080, "", "http://10.0.0.7:8080"),
        ("::1", 8080, "", "http://[::1]:8080"),
        ("0.0.0.0", 8080, "10.1.2.3", "http://10.1.2.3:8080"),
        ("::", 8080, "fd00::1", "http://[fd00::1]:8080"),
        ("0.0.0.0", 0, "10.1.2.3", ""),
    ],
)
def test_advertised_url(monkeypatch, host, port, pod_ip, url):
    monkeypatch.setenv("POD_IP", pod_ip)
    assert advertised_url(host, port) == url


def test_endpoint_answers_while_the_main_thread_computes(server):
    """A computing thread holds the interpreter for a few milliseconds at a time."""
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask(port_of(server), "/livez").status))
    thread.start()
    deadline = time.monotonic() + 15
    while not answers and time.monotonic() < deadline:
        sum(range(1000))
    thread.join(5)
    assert answers == [200]
