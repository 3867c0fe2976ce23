"""HTTP endpoint with health, metrics, status and a page. Read-only; every answer is built from memory."""

from ha_beat.monitoring.http.address import Endpoint, advertised_url, check_bind, choose_endpoint
from ha_beat.monitoring.http.routes import Site
from ha_beat.monitoring.http.server import HttpServer

__all__ = ["Endpoint", "HttpServer", "Site", "advertised_url", "check_bind", "choose_endpoint"]
