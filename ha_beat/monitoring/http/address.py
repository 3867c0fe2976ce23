"""Address of the HTTP endpoint: how it is checked, chosen, bound and advertised."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

from ha_beat.errors import ConfigurationError

#: Connections that wait to be accepted.
BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address to serve on. ``sock`` listens on it already if there were several ports to choose from."""

    host: str
    port: int
    sock: socket.socket | None = None


def check_bind(host: str, ports: range) -> None:
    """Check before beat starts that this replica can serve on one of the ports.

    Raises:
        ConfigurationError: a library is missing, or no address can be bound.
    """
    try:
        import h11  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as exc:
        raise ConfigurationError(
            f"ha_beat_http_bind needs the library {exc.name}: install it with pip install 'ha-beat[http]'"
        ) from exc
    failure: Exception | None = None
    for port in ports:
        try:
            bound_socket(host, port).close()
        except (OSError, UnicodeError) as exc:
            failure = exc
        else:
            return
    several = len(ports) > 1
    shown = f"{address_text(host, ports[0])}-{ports[-1]}" if several else address_text(host, ports[0])
    taken = "every port is taken" if several else "the port is taken; of a range, such as 8080-8089, a free one is used"
    why = taken if getattr(failure, "errno", 0) == errno.EADDRINUSE else str(failure)
    raise ConfigurationError(f"ha_beat_http_bind={shown}: {why}") from failure


def choose_endpoint(host: str, ports: range) -> Endpoint:
    """Return the endpoint. Of several ports, listen on the first free one now, before another process takes it."""
    for port in ports if len(ports) > 1 else ():
        try:
            sock = bound_socket(host, port)
        except OSError:
            continue
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            continue
        return Endpoint(host, port, sock)
    return Endpoint(host, ports[0])


def advertised_url(host: str, port: int) -> str:
    """Return the URL under which other machines reach the endpoint, empty if the kernel chooses the port."""
    if port == 0:
        return ""
    if host in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        host = os.environ.get("POD_IP") or socket.gethostname()
    return f"http://{address_text(host, port)}"


def address_text(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; ``::`` includes IPv4."""
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
