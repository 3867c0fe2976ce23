"""Carries answers over HTTP/1.1: one thread, one event loop, and a bound for everything a client can spend.

A general server gives a thread to each connection or waits for slow ones; here a connection costs a few kilobytes, has
a deadline in every state, and when there are too many, the one that has idled longest makes room, so that a probe is
always heard.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ha_beat.errors import ConfigurationError
from ha_beat.monitoring.http.routes import UPDATE_INTERVAL, Answer, Site, problem

if TYPE_CHECKING:
    import h11

logger = logging.getLogger("ha_beat")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes, and counts."""

    #: From the first byte of a request, or from connecting, until its head is complete.
    head: float = 5.0
    #: Between two requests on one connection.
    idle: float = 60.0
    #: Until a client has taken its answer.
    taking: float = 10.0
    connections: int = 256
    streams: int = 16
    #: For which one page is kept up to date; the browser then connects anew.
    streaming: float = 3600.0
    head_bytes: int = 16 * 1024
    #: Of updates that a page has not taken yet.
    stream_bytes: int = 1024 * 1024
    requests: int = 10_000


#: Seconds between two looks at the deadlines.
_REAP_INTERVAL = 0.5

#: Seconds between two looks at whether a page has to be told at once.
_GLANCE = 0.1

#: The process or the machine has no room for another connection.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Seconds until a port that was taken after the start is tried again.
_BIND_AGAIN = 2.0


def check_bind(host: str, port: int) -> None:
    """Find out, before beat starts, whether this replica can serve there.

    Raises:
        ConfigurationError: a library is missing, or the address can't be bound.
    """
    try:
        import h11  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as exc:
        raise ConfigurationError(
            f"ha_beat_http_bind needs the library {exc.name}: install it with pip install 'ha-beat[http]'"
        ) from exc
    try:
        _bound(host, port).close()
    except (OSError, UnicodeError) as exc:
        why = "the port is taken" if getattr(exc, "errno", 0) == errno.EADDRINUSE else str(exc)
        raise ConfigurationError(f"ha_beat_http_bind={_shown(host, port)}: {why}") from exc


def advertised_url(host: str, port: int) -> str:
    """Where others may find this endpoint; empty where only the kernel knows the port."""
    if port == 0:
        return ""
    if host in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        host = os.environ.get("POD_IP") or socket.gethostname()
    return f"http://{_shown(host, port)}"


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound to the address; for `::` to that of IPv4 too."""
    kind, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][::4]
    sock = socket.socket(kind, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


class HttpServer:
    """Serves a site, in a thread of its own."""

    def __init__(self, site: Site, host: str, port: int, limits: Limits | None = None) -> None:
        self.site = site
        self.limits = limits or Limits()
        self._host = host
        self._port = port
        self._closing = False
        self._exhausted = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[Connection, None] = {}
        self._streams: dict[Connection, None] = {}
        self.address = ("", 0)
        self._serving = threading.Event()

    def start(self) -> None:
        """To be called after any fork."""
        threading.Thread(target=self._run, name="ha_beat-http", daemon=True).start()

    def stop(self) -> None:
        """Serve no more, soon. May run inside a signal handler; waits for nothing."""
        self._closing = True

    def wait_until_serving(self, seconds: float) -> bool:
        """For tests."""
        return self._serving.wait(seconds)

    # --- The thread

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            logger.exception("The HTTP endpoint failed; scheduling continues", extra={"action": "http_failed"})

    async def _serve(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._note)
        server = await self._listen(loop)
        if server is None:
            return
        reaped = updated = loop.time()
        role = self.site.role()
        try:
            while not self._closing:
                await asyncio.sleep(_GLANCE)
                now = loop.time()
                if now - reaped >= _REAP_INTERVAL:
                    reaped = now
                    self._reap(now)
                if self._streams and (now - updated >= UPDATE_INTERVAL or self.site.role() != role):
                    updated, role = now, self.site.role()
                    self._update()
        finally:
            server.close()
            for connection in list(self._connections):
                connection.abort()

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Server | None:
        said = False
        while not self._closing:
            try:
                sock = _bound(self._host, self._port)
                self.address = sock.getsockname()[:2]
                server = await loop.create_server(lambda: Connection(self, loop), sock=sock, backlog=512)
            except OSError as exc:
                if not said:
                    said = True
                    address = _shown(self._host, self._port)
                    logger.error(  # noqa: TRY400 -- the traceback adds nothing
                        "Can't serve HTTP on %s (%s): retrying; scheduling continues",
                        address,
                        exc.strerror or exc,
                        extra={"action": "http_unavailable", "address": address, "detail": str(exc)},
                    )
                await asyncio.sleep(_BIND_AGAIN)
            else:
                address = _shown(*self.address)
                logger.info("Serving HTTP on %s", address, extra={"action": "http_serving", "address": address})
                self._serving.set()
                return server
        return None

    def _update(self) -> None:
        update = self.site.update()
        for connection in list(self._streams):
            connection.push(update)

    def _reap(self, now: float) -> None:
        for connection in list(self._connections):
            if connection.deadline < now:
                connection.abort()

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What goes wrong with a client is the client's; what goes wrong here is worth a line."""
        exc = context.get("exception")
        if isinstance(exc, OSError) and exc.errno in _EXHAUSTED:
            if not self._exhausted:
                extra = {"action": "http_exhausted", "detail": str(exc)}
                logger.warning("The HTTP endpoint can't accept connections: %s", exc.strerror, extra=extra)
            self._exhausted = True
            return
        level = logging.DEBUG if exc is None or isinstance(exc, OSError) else logging.ERROR
        message = context.get("message")
        logger.log(level, "HTTP: %s", message, exc_info=exc, extra={"action": "http_error", "detail": message})

    # --- For connections

    def admit(self, connection: Connection) -> None:
        self._exhausted = False
        self._connections[connection] = None
        if len(self._connections) > self.limits.connections:
            waiting = [each for each in self._connections if each.waiting and each is not connection]
            # Else the oldest: dicts keep their order.
            (min(waiting, key=lambda each: each.since) if waiting else next(iter(self._connections))).abort()

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._streams.pop(connection, None)

    def admit_stream(self, connection: Connection) -> bool:
        if len(self._streams) >= self.limits.streams:
            return False
        self._streams[connection] = None
        return True


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        import h11

        self._h11 = h11
        self._server = server
        self._limits = server.limits
        self._loop = loop
        self._http: h11.Connection = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._served = 0
        self._streaming = False
        self._in_head = True
        #: Nothing is owed to this client yet: since when, and until when it is waited for.
        self.waiting = True
        self.since = loop.time()
        self.deadline = self.since + self._limits.head

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            return
        self._transport = transport
        transport.set_write_buffer_limits(high=64 * 1024)
        self._server.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio gives it
        self._transport = None
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._streaming:
            return  # nothing more is expected of a page
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
        if not self._streaming:
            self._rest()
            self._go_on()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._server.forget(self)

    def push(self, update: bytes) -> None:
        """Send an update to the page."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > self._limits.stream_bytes:
            self.abort()
            return
        data = self._http.send(self._h11.Data(data=update))
        if data:
            transport.write(data)

    # --- HTTP's side

    def _expect(self, seconds: float) -> None:
        self.waiting = True
        self.since = self._loop.time()
        self.deadline = self.since + seconds

    def _rest(self) -> None:
        self._expect(self._limits.idle)
        self._in_head = False

    def _go_on(self) -> None:
        """Answer each request that is complete, as long as the client takes the answers."""
        while self._transport is not None and not self._transport.is_closing() and not self._paused:
            try:
                event = self._http.next_event()
            except self._h11.RemoteProtocolError as exc:
                self._refuse(exc)
                return
            if event is self._h11.NEED_DATA:
                return
            if event is self._h11.PAUSED:
                if self._http.our_state is not self._h11.DONE or self._http.their_state is not self._h11.DONE:
                    return
                self._http.start_next_cycle()
            elif isinstance(event, self._h11.Request):
                self._serve(event)
            elif isinstance(event, self._h11.ConnectionClosed):
                self._close()
            # What is left of a request without a body says nothing.

    def _serve(self, request: h11.Request) -> None:
        self._served += 1
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self._limits.head_bytes:
            self._send(problem(431, "That request is too large."), last=True)
            return
        if request.http_version not in {b"1.1", b"1.0"}:
            self._send(problem(400, "Only HTTP/1.1 is spoken here."), last=True)
            return
        answer = self._server.site.answer(
            request.method.decode("ascii", "replace"), request.target.decode("ascii", "replace")
        )
        if answer.stream and request.method == b"GET":
            if self._server.admit_stream(self):
                self._stream(answer)
                return
            answer = problem(503, "Too many pages are open.", ("Retry-After", "5"))
        has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in request.headers
        )
        # Nobody reads bodies here.
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
        head = self._http.send(self._h11.Response(status_code=answer.status, headers=headers)) or b""
        body = b"" if bodyless else self._http.send(self._h11.Data(data=answer.body)) or b""
        tail = self._http.send(self._h11.EndOfMessage()) or b""
        transport.write(head + body + tail)
        if self._http.our_state is not self._h11.DONE or last:
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
        head = self._http.send(self._h11.Response(status_code=answer.status, headers=answer.all_headers())) or b""
        transport.write(head)
        self.push(answer.body + self._server.site.update())

    def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """What the client sent is no request."""
        if self._http.our_state is self._h11.IDLE or self._http.our_state is self._h11.SEND_RESPONSE:
            self._send(problem(error.error_status_hint, "That is not a request that can be answered."), last=True)
        else:
            self.abort()

    def _close(self) -> None:
        """End the connection once what was written is out; the deadline holds for that."""
        self.waiting = False
        self.deadline = self._loop.time() + self._limits.taking
        if self._transport is not None:
            self._transport.close()
