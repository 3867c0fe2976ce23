"""HTTP/1.1 server in a thread with its own event loop. ``h11`` parses and writes the protocol.

Each connection costs a few kilobytes and has a deadline in every state. If there are too many connections, the one that
has been idle longest is closed. Thus a probe is always answered.

aiohttp.web 3.14.5 was tried instead, with the tests of this module: 27 passed, 8 failed. Six failures were harmless: a
different status code or log record. The other two decided:

- aiohttp has no deadline for the head of a request. A client that sends one header byte every 200 ms was still
  connected after 12 s.
- aiohttp has no limit on connections. 2,000 slow clients stayed open and used up the process's file descriptors. With
  200 descriptors and 400 idle clients no probe was answered, and the scheduler could not connect to Redis.

Both could be added only in a subclass of its private ``RequestHandler``, with the code that is here. By its source,
uvicorn 0.54 has no deadline for the head either. Beyond ``limit_concurrency`` it answers 503 to a probe, and evicts no
connection.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable
from typing import Any

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.duties import Duties
from ha_beat.monitoring.http.address import BACKLOG, Endpoint, address_text, bound_socket
from ha_beat.monitoring.http.connection import ConnectionPool, HttpConnection, Limits
from ha_beat.monitoring.http.routes import UPDATE_INTERVAL, Site
from ha_beat.reasons import Duty, DutyFault
from ha_beat.threads import LastingThread

logger = logging.getLogger("ha_beat")

#: Seconds between two checks of the deadlines.
_REAP_INTERVAL = 0.5

#: Seconds between two checks for a change that streams must show immediately.
_POLL_INTERVAL = 0.1

#: Seconds after which the endpoint counts as late.
_SERVE_WITHIN = 30.0

#: Errors of a process or machine without room for another connection.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Seconds between two attempts to bind a port that is taken.
_BIND_RETRY = 2.0


class HttpServer:
    """Server of a site, in a daemon thread."""

    def __init__(
        self,
        site: Site,
        endpoint: Endpoint,
        limits: Limits | None = None,
        *,
        duties: Duties | None = None,
        emit: Callable[[events.Event], None] = lambda _: None,
    ) -> None:
        clock = SystemClock()
        self.site = site
        self.connections = ConnectionPool(site, limits or Limits())
        self.address = ("", 0)
        self._endpoint = endpoint
        self._sock = endpoint.sock
        self._closing = False
        self._exhausted = False
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Set once the port is bound.
        self.serving = threading.Event()
        self._duties = duties or Duties(clock, emit)
        self.thread = LastingThread(name="ha_beat-http", run=self._run, clock=clock, emit=emit)

    def stop(self) -> None:
        """Ask the thread to stop. Does not wait, so a signal handler may call it."""
        self._closing = True
        self.thread.stop()

    # --- The thread

    def _run(self) -> None:
        self._duties.expect(Duty.SERVE_HTTP, within=_SERVE_WITHIN)
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._log_error)
        server = await self._listen(loop)
        if server is None:
            return
        reaped = updated = loop.time()
        role = self.site.role()
        try:
            while not self._closing:
                await asyncio.sleep(_POLL_INTERVAL)
                now = loop.time()
                if now - reaped >= _REAP_INTERVAL:
                    reaped = now
                    self._duties.done(Duty.SERVE_HTTP)
                    self.connections.reap(now)
                if self.connections.streams and (now - updated >= UPDATE_INTERVAL or self.site.role() != role):
                    updated, role = now, self.site.role()
                    self.connections.push(self.site.update())
        finally:
            server.close()
            self.connections.abort()

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Server | None:
        while not self._closing:
            try:
                sock, self._sock = self._sock or bound_socket(self._endpoint.host, self._endpoint.port), None
                self.address = sock.getsockname()[:2]
                server = await loop.create_server(lambda: self._connect(loop), sock=sock, backlog=BACKLOG)
            except OSError as exc:
                detail = f"{address_text(self._endpoint.host, self._endpoint.port)}: {exc.strerror or exc}"
                self._duties.failed(Duty.SERVE_HTTP, DutyFault.REFUSED, detail)
                await asyncio.sleep(_BIND_RETRY)
            else:
                address = address_text(*self.address)
                logger.info("Serving HTTP on %s", address, extra={"action": "http_serving", "address": address})
                self.serving.set()
                return server
        return None

    def _connect(self, loop: asyncio.AbstractEventLoop) -> HttpConnection:
        self._exhausted = False
        return HttpConnection(self.connections, loop)

    def _log_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error of a connection: at level DEBUG if the client caused it."""
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
