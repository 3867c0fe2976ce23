"""Health, metrics, status and a page over HTTP. Read-only; answers come from memory.

:mod:`ha_beat.monitoring.http.routes` builds the answers. :mod:`ha_beat.monitoring.http.server` serves them from one
thread with its own event loop, bounded in connections, sizes and time. ``h11`` reads and writes the protocol.
"""

from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.http.server import HttpServer, advertised_url, check_bind

__all__ = ["HttpServer", "Site", "advertised_url", "check_bind"]
