"""Address of the HTTP endpoint: bind, check and advertise it."""

from __future__ import annotations

import errno
import os
import socket

from ha_beat.errors import ConfigurationError


def check_bind(host: str, port: int) -> None:
    """Check before beat starts that this replica can serve on the address.

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
        bound_socket(host, port).close()
    except (OSError, UnicodeError) as exc:
        why = "the port is taken" if getattr(exc, "errno", 0) == errno.EADDRINUSE else str(exc)
        raise ConfigurationError(f"ha_beat_http_bind={address_text(host, port)}: {why}") from exc


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
