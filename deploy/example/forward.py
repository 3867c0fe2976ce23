"""Forwarder of connections to a live replica: ``python forward.py 8080 beat:8080``.

The name stands for several containers, which come and go. The page keeps one address.
"""

import asyncio
import contextlib
import random
import socket
import sys

_LIVE = b"GET /livez HTTP/1.0\r\n\r\n"


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to one of the containers that answers. A paused one accepts connections and does not."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [each[4][0] for each in found]
    random.shuffle(addresses)
    for address in addresses:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(address, port)
                writer.write(_LIVE)
                live = b"200" in await reader.readline()
                writer.close()
                if live:
                    return await asyncio.open_connection(address, port)
    raise OSError("no replica answers")


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(port: int, target: str) -> None:
    host, _, target_port = target.partition(":")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await connect(host, int(target_port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, upstream[1]), copy(upstream[0], writer))

    server = await asyncio.start_server(forward, "0.0.0.0", port)  # noqa: S104 -- inside its container
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
