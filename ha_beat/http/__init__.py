"""Health, metrics, status and a page over HTTP. Read-only; answers come from memory.

:mod:`ha_beat.http.site` says what is answered, :mod:`ha_beat.http.server` carries it: one thread with an event loop of
its own, bounded in connections, sizes and time. ``h11`` reads and writes the protocol.
"""

from ha_beat.http.server import HttpServer, advertised_url, check_bind
from ha_beat.http.site import Site

__all__ = ["HttpServer", "Site", "advertised_url", "check_bind"]
