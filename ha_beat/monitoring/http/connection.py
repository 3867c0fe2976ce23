"""Connections of the HTTP endpoint. Everything that a client can use up has a limit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum

import h11

from ha_beat.monitoring.http.routes import HttpAnswer, Site, problem


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per connection and in total, in seconds, bytes and counts."""

    #: From connecting, or from the first byte of a request, until the head is complete.
    head: float = 5.0
    #: Between two requests on one connection.
    idle: float = 60.0
    #: Until the client has read its answer.
    taking: float = 10.0
    #: From the last answer until the client closes the connection. Data that it still sends is discarded.
    lingering: float = 2.0
    connections: int = 256
    streams: int = 16
    #: Lifetime of a stream. The browser then reconnects.
    streaming: float = 3600.0
    head_bytes: int = 16 * 1024
    #: Updates that the client has not read yet.
    stream_bytes: int = 1024 * 1024
    requests: int = 10_000


class ConnectionState(StrEnum):
    """State of a connection. Its value names the limit of its duration in :class:`Limits`."""

    #: The client sends the head of a request.
    HEAD = "head"
    #: The client has sent nothing since the last answer.
    IDLE = "idle"
    #: The client reads an answer.
    TAKING = "taking"
    #: The client reads a stream of updates.
    STREAMING = "streaming"
    #: The last answer was sent, and the client has not closed the connection yet.
    LINGERING = "lingering"


class ConnectionPool:
    """Open connections of the endpoint. Used by one thread."""

    def __init__(self, site: Site, limits: Limits) -> None:
        self.site = site
        self.limits = limits
        self.open: dict[HttpConnection, None] = {}
        self.streams: dict[HttpConnection, None] = {}

    def admit(self, connection: HttpConnection) -> None:
        """Add a connection. If there are too many, abort the one that has been idle longest, else the oldest."""
        self.open[connection] = None
        if len(self.open) > self.limits.connections:
            idle = [each for each in self.open if each.idle and each is not connection]
            (min(idle, key=lambda each: each.since) if idle else next(iter(self.open))).abort()

    def admit_stream(self, connection: HttpConnection) -> bool:
        """Add a stream. Return False if there are too many."""
        if len(self.streams) >= self.limits.streams:
            return False
        self.streams[connection] = None
        return True

    def forget(self, connection: HttpConnection) -> None:
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


class HttpConnection(asyncio.Protocol):
    """Connection of one client. It has more than 15 methods, because six are callbacks of asyncio.

    ``since``, the beginning of the state, and ``deadline`` are on the loop's clock.
    """

    def __init__(self, pool: ConnectionPool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._limits = pool.limits
        self._loop = loop
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        self._transport: asyncio.Transport | None = None
        #: True while the client has too many answers to read.
        self._paused = False
        self._served = 0
        self._enter(ConnectionState.HEAD)

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
        if self._ending:
            return
        if self.state is ConnectionState.IDLE:
            self._enter(ConnectionState.HEAD)
        try:
            self._http.receive_data(data)
        except RuntimeError:
            return
        self._answer_requests()

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
        if not self._ending:
            self._enter(ConnectionState.IDLE)
            self._answer_requests()

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

    @property
    def idle(self) -> bool:
        """True if no answer is under way."""
        return self.state not in {ConnectionState.TAKING, ConnectionState.STREAMING}

    @property
    def _ending(self) -> bool:
        """True if no further request is answered."""
        return self.state in {ConnectionState.STREAMING, ConnectionState.LINGERING}

    def _enter(self, state: ConnectionState) -> None:
        self.state = state
        self.since = self._loop.time()
        self.deadline: float = self.since + getattr(self._limits, state)

    def _answer_requests(self) -> None:
        """Answer the complete requests while the client reads the answers."""
        while self._transport is not None and not (self._transport.is_closing() or self._paused or self._ending):
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
            # Other events are parts of the request that need no answer.

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
        # Bodies are not read, so the beginning of the next request is unknown.
        last = has_body or self._served >= self._limits.requests
        self._send(answer, last=last, bodyless=request.method == b"HEAD")

    def _send(self, answer: HttpAnswer, *, last: bool, bodyless: bool = False) -> None:
        transport = self._transport
        if transport is None:
            return
        self._enter(ConnectionState.TAKING)
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
            self._enter(ConnectionState.IDLE)

    def _stream(self, answer: HttpAnswer) -> None:
        transport = self._transport
        if transport is None:
            return
        self._enter(ConnectionState.STREAMING)
        transport.set_write_buffer_limits(high=self._limits.stream_bytes)
        head = self._http.send(h11.Response(status_code=answer.status, headers=answer.all_headers())) or b""
        transport.write(head)
        self.push(answer.body + self._pool.site.update())

    def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer a malformed request, and close the connection."""
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._send(problem(error.error_status_hint, "Malformed request."), last=True)
        else:
            self.abort()

    def _close(self) -> None:
        """Send the written data, and close once the client has closed or the deadline passes.

        If the socket was closed while input is unread, the kernel would reset the connection, and the client could
        lose the answer.
        """
        self._enter(ConnectionState.LINGERING)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
