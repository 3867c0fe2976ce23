"""TCP proxy that injects faults: cuts, blackholes, delays, lost replies, late requests.

"request" is the direction from client to server, "reply" the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.support.servers import LOCALHOST, free_port

Direction: TypeAlias = Literal["request", "reply"]
Predicate: TypeAlias = Callable[[bytes], bool]
T = TypeVar("T")

BOTH: tuple[Direction, ...] = ("request", "reply")

_CHUNK = 1 << 16
_REMEMBERED = 1 << 18
# Time for the server to act on the whole request before the connection is cut.
_GRACE_SECONDS = 0.05
_LINGER_RESET = struct.pack("ii", 1, 0)


def containing(*parts: bytes) -> Predicate:
    """Return a predicate: True if the request contains all of these byte strings."""
    return lambda data: all(part in data for part in parts)


@dataclass(eq=False)
class _Watch:
    """Watch for one matching request."""

    matches: Predicate
    seen: threading.Event = field(default_factory=threading.Event, init=False)

    def takes(self, data: bytes) -> bool:
        if self.seen.is_set() or not self.matches(data):
            return False
        self.seen.set()
        return True


@dataclass(eq=False)
class CutReply(_Watch):
    """Reply to be lost."""

    done: threading.Event = field(default_factory=threading.Event, init=False)

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until the server has acted on the request and the connection is cut. Raises AssertionError."""
        if not self.done.wait(timeout):
            raise AssertionError(f"no reply was cut in {timeout:g} s (request matched: {self.seen.is_set()})")


@dataclass(eq=False)
class HeldRequest(_Watch):
    """Request held back until `release`."""

    proxy: TcpProxy
    gate: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until a matching request has arrived. Raises AssertionError."""
        if not self.seen.wait(timeout):
            raise AssertionError(f"no matching request came in {timeout:g} s")

    def release(self) -> None:
        """Deliver the request, even if its client is gone. Returns before the server has read it."""
        self.seen.set()
        self.proxy._do(self.gate.set)


@dataclass
class _Way:
    """State of one direction, shared by all connections of the proxy."""

    delay: float = 0.0
    blackholed: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)


class _Pair:
    """Client's connection and the connection to the server."""

    def __init__(self, proxy: TcpProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client_reader = reader
        self.client_writer = writer
        self.server_writer: asyncio.StreamWriter | None = None
        self.recent = b""
        self.lost_bytes = False
        self.losing: CutReply | None = None
        self.hold: asyncio.Event | None = None
        self.client_gone = False
        self.forgotten = False
        self.pumps: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        try:
            reader, self.server_writer = await asyncio.open_connection(*self.proxy.upstream)
        except OSError:
            self.proxy.counters["upstream refused"] += 1
            self.reset()
            return
        self.pumps = [
            asyncio.ensure_future(self._pump("request", self.client_reader, self.server_writer)),
            asyncio.ensure_future(self._pump("reply", reader, self.client_writer)),
        ]
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await asyncio.gather(*self.pumps)
        finally:
            for pump in self.pumps:
                pump.cancel()
            self.close()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Move bytes; a separate task reads, so that a delay shifts the stream and does not slow it."""
        way = self.proxy.ways[direction]
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def read() -> None:
            while True:
                try:
                    data = await reader.read(_CHUNK)
                except OSError:
                    data = b""
                if not data and direction == "request":
                    self.client_gone = True
                await queue.put((loop.time(), data))
                if not data:
                    return

        reading = asyncio.ensure_future(read())
        try:
            while True:
                arrived, data = await queue.get()
                if way.delay:
                    await asyncio.sleep(max(0.0, arrived + way.delay - loop.time()))
                await way.open.wait()
                if not data:
                    if way.blackholed:
                        await asyncio.Event().wait()  # the end of a stream is lost like its bytes
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                await self._forward(direction, data, writer)
        finally:
            reading.cancel()

    async def _forward(self, direction: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        proxy = self.proxy
        if self.forgotten or proxy.ways[direction].blackholed:
            self.lost_bytes = True
            proxy.counters[f"{direction} bytes lost"] += len(data)
            return
        if direction == "request":
            await self._look(data)
        elif self.losing is not None:
            self._lose()
            return
        elif self.client_gone:
            return  # the client reads no more
        proxy.counters[f"{direction} bytes"] += len(data)
        writer.write(data)
        await writer.drain()

    async def _look(self, data: bytes) -> None:
        """Look for a watched request, possibly spread over several reads."""
        proxy = self.proxy
        if not proxy.replies_to_cut and not proxy.requests_to_hold:
            self.recent = b""
            return
        self.recent = (self.recent + data)[-_REMEMBERED:]
        for cut in proxy.replies_to_cut:
            if self.losing is None and cut.takes(self.recent):
                self.recent = b""
                self.losing = cut
        for held in proxy.requests_to_hold:
            if self.hold is None and held.takes(self.recent):
                self.recent = b""
                self.hold = held.gate
        if self.hold is not None:
            await self.hold.wait()
            self.hold = None

    def _lose(self) -> None:
        """Swallow the replies to a matching request, and cut the connection once the server had time for the rest."""
        cut = self.losing
        if self.lost_bytes or cut is None:
            return
        self.lost_bytes = True

        def end() -> None:
            self.reset()
            cut.done.set()

        asyncio.get_running_loop().call_later(_GRACE_SECONDS, end)

    def reset(self) -> None:
        """Send RST to the client; the server sees a normal end of the stream.

        A held request outlives its client, like one in the network.
        """
        self.client_gone = True
        with contextlib.suppress(OSError, AttributeError):
            raw: socket.socket = self.client_writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.client_writer.transport.abort()
        if self.hold is None:
            for pump in self.pumps:
                pump.cancel()
            if self.server_writer is not None:
                self.server_writer.close()

    def close(self) -> None:
        self.client_writer.close()
        if self.server_writer is not None:
            self.server_writer.close()


class TcpProxy:
    """Proxy on a free port of 127.0.0.1 in front of `upstream` (host, port). A context manager.

    It listens from its construction on. Its methods are thread-safe, and each returns once it has taken effect.

    counters: `connections`, `upstream refused`, `request bytes`, `reply bytes`, `request bytes lost`,
    `reply bytes lost`.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.port = free_port()
        self.counters: Counter[str] = Counter()
        self.pairs: set[_Pair] = set()
        self.replies_to_cut: list[CutReply] = []
        self.requests_to_hold: list[HeldRequest] = []
        self.ways: dict[Direction, _Way] = {direction: _Way() for direction in BOTH}
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self.resume()
        self._call(self._listen)

    @classmethod
    def for_url(cls, url: str) -> Self:
        """Return a proxy in front of the host and port of a URL."""
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise ValueError("the URL must name a host and a port")
        return cls((parts.hostname, parts.port))

    def url(self, url: str) -> str:
        """Return the same URL through this proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{LOCALHOST}:{self.port}"))

    @property
    def address(self) -> tuple[str, int]:
        return LOCALHOST, self.port

    @property
    def connections(self) -> int:
        """Return the number of open connections."""
        return len(self.pairs)

    # -- faults

    def cut(self) -> int:
        """Reset every open connection and return their number. New ones pass."""

        def cut() -> int:
            pairs = list(self.pairs)
            for pair in pairs:
                pair.reset()
            return len(pairs)

        return self._do(cut)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones (nothing listens) until `accept`."""

        def refuse() -> None:
            self._refusing = True
            if self._server is not None:
                self._server.close()
                self._server = None

        self._do(refuse)
        self.cut()

    def accept(self) -> None:
        """Listen again."""

        async def accept() -> None:
            self._refusing = False
            if self._server is None:
                await self._listen()

        self._call(accept)

    def blackhole(self, *directions: Direction) -> None:
        """Swallow all bytes of these directions (default: both). New connections open and stay silent.

        `heal` resets the connections that lost bytes, since their streams are broken.
        """
        self._set(directions, lambda way: setattr(way, "blackholed", True))

    def forget(self) -> None:
        """Swallow all bytes of the open connections, like a load balancer that has forgotten them. New ones pass."""
        self._do(lambda: [setattr(pair, "forgotten", True) for pair in self.pairs])

    def pause(self, *directions: Direction) -> None:
        """Hold back all bytes of these directions (default: both), like a network that will resend them."""
        self._set(directions, lambda way: way.open.clear())

    def resume(self, *directions: Direction) -> None:
        """Deliver the bytes that `pause` held back."""
        self._set(directions, lambda way: way.open.set())

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Deliver the bytes of these directions (default: both) `seconds` after their arrival."""
        self._set(directions, lambda way: setattr(way, "delay", seconds))

    def _set(self, directions: Sequence[Direction], change: Callable[[_Way], object]) -> None:
        self._do(lambda: [change(self.ways[direction]) for direction in directions or BOTH])

    def cut_reply_after(self, predicate: Predicate | bytes) -> CutReply:
        """Let the next matching request reach the server, and cut its connection before the reply returns.

        The predicate receives the latest 256 KiB that one connection has sent since the call.
        """
        cut = CutReply(_as_predicate(predicate))
        self._do(lambda: self.replies_to_cut.append(cut))
        return cut

    def hold(self, predicate: Predicate | bytes) -> HeldRequest:
        """Hold back the next matching request, and what follows on its connection, until it is released."""
        held = HeldRequest(_as_predicate(predicate), self)
        self._do(lambda: self.requests_to_hold.append(held))
        return held

    def heal(self) -> None:
        """End every fault. Held requests are delivered; replies still to be cut are not."""

        def heal() -> None:
            broken = [pair for pair in self.pairs if pair.lost_bytes]
            for way in self.ways.values():
                way.delay = 0.0
                way.blackholed = False
                way.open.set()
            for pair in broken:
                pair.reset()
            self.replies_to_cut.clear()

        for held in self.requests_to_hold:
            held.release()
        self.requests_to_hold.clear()
        self._do(heal)
        self.accept()

    # -- life cycle

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOCALHOST, self.port, backlog=512)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(self, reader, writer)
        if self._refusing:
            pair.reset()
            return
        self.counters["connections"] += 1
        self.pairs.add(pair)
        try:
            await pair.run()
        finally:
            self.pairs.discard(pair)

    def _call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def _do(self, act: Callable[[], T]) -> T:
        async def run() -> T:
            return act()

        return self._call(run)

    def close(self) -> None:
        """Stop listening and drop every connection. Idempotent."""
        if not self._thread.is_alive():
            return

        async def close() -> None:
            if self._server is not None:
                self._server.close()
            for pair in list(self.pairs):
                pair.reset()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._call(close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_predicate(predicate: Predicate | bytes) -> Predicate:
    return containing(predicate) if isinstance(predicate, bytes) else predicate
