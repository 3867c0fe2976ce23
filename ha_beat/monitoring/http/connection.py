"""Connections of the HTTP endpoint, with a limit for everything that a client can use up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import h11

from ha_beat.monitoring.http.routes import Answer, Site, problem


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per connection and in total, in seconds, bytes and counts."""

    #: From connecting, or from the first byte of a request, until the head is complete.
    head: float = 5.0
    #: Between two requests on one connection.
    idle: float = 60.0
    #: Until the client has read its answer.
    taking: float = 10.0
    #: From the last answer until the client closes. What it still sends is discarded.
    lingering: float = 2.0
    connections: int = 256
    streams: int = 16
    #: Lifetime of a stream. The browser then reconnects.
    streaming: float = 3600.0
    head_bytes: int = 16 * 1024
    #: Updates that the client has not read yet.
    stream_bytes: int = 1024 * 1024
    requests: int = 10_000


class ConnectionPool:
    """Open connections of the endpoint. Used by one thread."""

    def __init__(self, site: Site, limits: Limits) -> None:
        self.site = site
        self.limits = limits
        self.open: dict[Connection, None] = {}
        self.streams: dict[Connection, None] = {}

    def admit(self, connection: Connection) -> None:
        """Add a connection. If there are too many, abort the one that has been idle longest, else the oldest."""
        self.open[connection] = None
        if len(self.open) > self.limits.connections:
            waiting = [each for each in self.open if each.waiting and each is not connection]
            (min(waiting, key=lambda each: each.since) if waiting else next(iter(self.open))).abort()

    def admit_stream(self, connection: Connection) -> bool:
        """Add a stream. Return False if there are too many."""
        if len(self.streams) >= self.limits.streams:
            return False
        self.streams[connection] = None
        return True

    def forget(self, connection: Connection) -> None:
        self.open.pop(connection, None)
        self.streams.pop(connection, None)

    def reap(self, now: float) -> None:
        """Abort the connections whose deadline has passed."""
        for connection in list(self.open):
            if connection.deadline < now:
                connection.abort()

    def push(self, update: bytes) -> None:
        """Send an update to all streams."""
        for connection in list(self.streams):
            connection.push(update)

    def abort(self) -> None:
        for connection in list(self.open):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client. It has more than 15 methods, because seven are callbacks of asyncio.

    ``deadline`` is on the loop's clock. ``waiting`` is True while the client owes a request, since ``since``.
    """

    def __init__(self, pool: ConnectionPool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._limits = pool.limits
        self._loop = loop
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._served = 0
        self._streaming = False
        self._lingering = False
        self._in_head = True
        self.waiting = True
        self.since = loop.time()
        self.deadline = self.since + self._limits.head

    # --- Callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            return
        self._transport = transport
        transport.set_write_buffer_limits(high=64 * 1024)
        self._pool.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- required by asyncio
        self._transport = None
        self._pool.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._streaming or self._lingering:
            return
        if not self._in_head:
            self._expect(self._limits.head)
            self._in_head = True
        try:
            self._http.receive_data(data)
        except RuntimeError:
            return
        self._go_on()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        if not self._streaming and not self._lingering:
            self._rest()
            self._go_on()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._pool.forget(self)

    def push(self, update: bytes) -> None:
        """Send an update to a stream, or abort it if the client has not read the previous ones."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > self._limits.stream_bytes:
            self.abort()
            return
        data = self._http.send(h11.Data(data=update))
        if data:
            transport.write(data)

    # --- HTTP

    def _expect(self, seconds: float) -> None:
        self.waiting = True
        self.since = self._loop.time()
        self.deadline = self.since + seconds

    def _rest(self) -> None:
        self._expect(self._limits.idle)
        self._in_head = False

    def _go_on(self) -> None:
        """Answer the complete requests while the client reads the answers."""
        while self._transport is not None and not (self._transport.is_closing() or self._lingering or self._paused):
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                self._refuse(exc)
                return
            if event is h11.NEED_DATA:
                return
            if event is h11.PAUSED:
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
            elif isinstance(event, h11.Request):
                self._serve(event)
            elif isinstance(event, h11.ConnectionClosed):
                self._close()
            # The other events are the rest of the request, which has no body.

    def _serve(self, request: h11.Request) -> None:
        self._served += 1
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self._limits.head_bytes:
            self._send(problem(431, "The request is too large."), last=True)
            return
        if request.http_version not in {b"1.1", b"1.0"}:
            self._send(problem(400, "Only HTTP/1.0 and HTTP/1.1 are supported."), last=True)
            return
        answer = self._pool.site.answer(
            request.method.decode("ascii", "replace"), request.target.decode("ascii", "replace")
        )
        if answer.stream and request.method == b"GET":
            if self._pool.admit_stream(self):
                self._stream(answer)
                return
            answer = problem(503, "Too many streams are open.", ("Retry-After", "5"))
        has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in request.headers
        )
        # A body is not read, so the next request can't be found after it.
        last = has_body or self._served >= self._limits.requests
        self._send(answer, last=last, bodyless=request.method == b"HEAD")

    def _send(self, answer: Answer, *, last: bool, bodyless: bool = False) -> None:
        transport = self._transport
        if transport is None:
            return
        self.waiting = False
        self.deadline = self._loop.time() + self._limits.taking
        headers = answer.all_headers()
        if last:
            headers.append(("Connection", "close"))
        head = self._http.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        body = b"" if bodyless else self._http.send(h11.Data(data=answer.body)) or b""
        tail = self._http.send(h11.EndOfMessage()) or b""
        transport.write(head + body + tail)
        if self._http.our_state is not h11.DONE or last:
            self._close()
        elif not self._paused:
            self._rest()

    def _stream(self, answer: Answer) -> None:
        transport = self._transport
        if transport is None:
            return
        self._streaming, self.waiting = True, False
        self.deadline = self._loop.time() + self._limits.streaming
        transport.set_write_buffer_limits(high=self._limits.stream_bytes)
        head = self._http.send(h11.Response(status_code=answer.status, headers=answer.all_headers())) or b""
        transport.write(head)
        self.push(answer.body + self._pool.site.update())

    def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer a malformed request, and close the connection."""
        if self._http.our_state is h11.IDLE or self._http.our_state is h11.SEND_RESPONSE:
            self._send(problem(error.error_status_hint, "Malformed request."), last=True)
        else:
            self.abort()

    def _close(self) -> None:
        """Send the written data, and close once the client has or the deadline passes.

        If the socket were closed while input is unread, the kernel would reset the connection, and the client might
        lose the answer.
        """
        self._lingering = True
        self._expect(self._limits.lingering)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
