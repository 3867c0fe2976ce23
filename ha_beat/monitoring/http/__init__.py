"""Health, metrics, status and a page over HTTP. Read-only; answers come from memory.

:mod:`ha_beat.monitoring.http.routes` says what is answered, :mod:`ha_beat.monitoring.http.server` carries it: one thread with an event loop of
its own, bounded in connections, sizes and time. ``h11`` reads and writes the protocol.
"""

from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.http.server import HttpServer, advertised_url, check_bind

__all__ = ["HttpServer", "Site", "advertised_url", "check_bind"]
