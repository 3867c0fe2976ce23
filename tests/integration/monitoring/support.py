"""Server and client for tests of the HTTP endpoint."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ha_beat.monitoring.http.address import Endpoint
from ha_beat.monitoring.http.connection import Limits
from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.http.server import HttpServer
from tests.unit.monitoring.scene import Scene

LOCALHOST = "127.0.0.1"


@contextlib.contextmanager
def serving(
    limits: Limits | None = None, *, site: Site | None = None, endpoint: Endpoint | None = None
) -> Iterator[HttpServer]:
    """Serve a site, by default that of a standby on a free port."""
    server = HttpServer(site or Scene().site(), endpoint or Endpoint(LOCALHOST, 0), limits)
    server.thread.keep_running()
    try:
        assert server.serving.wait(10)
        yield server
    finally:
        server.stop()


@dataclass
class Reply:
    status: int
    text: str
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.text)


def ask(port: int, path: str, method: str = "GET", timeout: float = 5.0) -> Reply:
    """Send one request on a new connection.

    Raises:
        OSError: no answer came.
    """
    connection = http.client.HTTPConnection(LOCALHOST, port, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
        return Reply(answer.status, text, {name.lower(): value for name, value in answer.getheaders()})
    except http.client.HTTPException as exc:
        raise ConnectionError(repr(exc)) from exc
    finally:
        connection.close()


def send_raw(port: int, data: bytes, first_byte: float = 0.5) -> bytes:
    """Send bytes, and return the answer up to its end or half a second of silence.

    `first_byte` is the longest time in seconds until the answer begins.
    """
    with socket.create_connection((LOCALHOST, port), timeout=30.0) as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
        client.settimeout(first_byte)
        found = b""
        with contextlib.suppress(OSError):
            while chunk := client.recv(65536):
                found += chunk
                client.settimeout(0.5)
        return found
