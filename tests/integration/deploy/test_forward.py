"""Forwarder of the Compose file, which gives the page one address."""

import asyncio
import importlib.util
import socket
from typing import Any

import pytest

from tests.support.commands import DEPLOY


def load() -> Any:
    spec = importlib.util.spec_from_file_location("forward", DEPLOY / "example" / "forward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("live", ["127.0.0.3", ""])
def test_connection_goes_to_a_replica_that_answers(monkeypatch: pytest.MonkeyPatch, live: str) -> None:
    """One replica is paused and accepts connections only, another is gone."""
    forward = load()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nlive" if b"/livez" in asked else b"HTTP/1.0 200 OK\r\n\r\npage")
        writer.close()

    async def ask() -> bytes:
        paused = socket.create_server(("127.0.0.2", 0))
        port = paused.getsockname()[1]
        servers = [await asyncio.start_server(answer, live, port)] if live else []
        addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        async def getaddrinfo(host: str, *args: object, **kwargs: object) -> Any:
            return found if host == "beat" else await resolve(host, *args, **kwargs)

        loop = asyncio.get_running_loop()
        resolve = loop.getaddrinfo
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        try:
            reader, writer = await forward.connect("beat", port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            body: bytes = await reader.read()
            writer.close()
            return body
        finally:
            paused.close()
            for server in servers:
                server.close()

    if live:
        assert asyncio.run(ask()).endswith(b"page")
    else:
        with pytest.raises(OSError, match="no replica answers"):
            asyncio.run(ask())
