"""URLs and options of Redis as Celery, kombu and redis-py spell them, and the arguments of redis-py's pool."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.connection import parse_url as _parse_url
from redis.retry import Retry

from ha_beat.errors import ConfigurationError

#: Connections that a link may need at the same time: for presence, for a command, and for another in a signal handler.
FEWEST_CONNECTIONS = 4

_REQUIREMENTS = {"cert_none": "none", "cert_optional": "optional", "cert_required": "required"}

Address = tuple[str, int]

# redis-py does not type it.
parse_url: Callable[[str], Mapping[str, Any]] = _parse_url


def pool_kwargs(url: str, options: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Return the arguments of redis-py's pool. The options override the URL.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    try:
        found = parse_url(_as_redis_py_spells(url))
    except ValueError as exc:
        raise _unreadable(exc) from None
    kwargs = {**no_retry_options(timeout), **in_redis_py(found), **in_redis_py(options)}
    # A field of another program that is no UTF-8 would make the whole reply unreadable.
    kwargs["decode_responses"] = False
    if kwargs.pop("ssl", False):
        kwargs["connection_class"] = SSLConnection
    if isinstance(kwargs.get("max_connections"), int):
        kwargs["max_connections"] = max(kwargs["max_connections"], FEWEST_CONNECTIONS)
    return kwargs


def no_retry_options(timeout: float) -> dict[str, Any]:
    """Return options for short timeouts without retries."""
    retry: Any = Retry(NoBackoff(), 0)
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry}


def _as_redis_py_spells(url: str) -> str:
    """Return a URL of Celery or kombu as redis-py writes it."""
    scheme, _, rest = url.strip().partition("://")
    scheme = scheme.lower()
    if scheme == "redis+socket":
        path, question, query = rest.partition("?")
        return f"unix://{path}{question}{query.replace('virtual_host=', 'db=')}"
    return f"{scheme}://{rest}"


def in_redis_py(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options in Celery's spelling as redis-py spells them."""
    found = dict(options)
    requirement = found.get("ssl_cert_reqs")
    if isinstance(requirement, ssl.VerifyMode):
        requirement = requirement.name
    if isinstance(requirement, str):
        word = requirement.lower()
        found["ssl_cert_reqs"] = _REQUIREMENTS.get(word, word)
        if found["ssl_cert_reqs"] == "none":
            # Python refuses to check the host name of a certificate that it does not verify.
            found.setdefault("ssl_check_hostname", False)
    for name in ("protocol", "db"):
        if isinstance(found.get(name), str) and found[name].isdecimal():
            found[name] = int(found[name])
    check = found.get("ssl_check_hostname")
    if isinstance(check, str):
        found["ssl_check_hostname"] = check.lower() in ("1", "true", "yes", "on")
    return found


def hosts_of(url: str, default_port: int) -> tuple[list[Address], str]:
    """Return the hosts of a URL with several, and a ``redis://`` URL of the first one with the remaining parts.

    Both ``sentinel://h1:26379;sentinel://h2:26379/0`` and ``redis+cluster://user:password@h1:7000,h2:7000?x=y``.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    scheme, _, rest = url.strip().partition("://")
    front, question, query = rest.partition("?")
    listed = (part.strip() for part in front.replace(",", ";").split(";"))
    parts = [part.partition("://")[2] or part for part in listed if part]
    userinfo = next((part.rpartition("@")[0] for part in parts if "@" in part), "")
    path = next((found for part in parts if (found := part.rpartition("@")[2].partition("/")[2])), "")
    addresses = []
    for part in parts:
        host_and_port = part.rpartition("@")[2].partition("/")[0]
        if not host_and_port:
            continue
        try:
            split = urlsplit(f"//{host_and_port}")
            addresses.append((split.hostname or "localhost", split.port or default_port))
        except ValueError as exc:
            raise _unreadable(exc) from None
    if not addresses:
        raise ConfigurationError("ha_beat_redis_url names no host")
    host, port = addresses[0]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    at = f"{userinfo}@" if userinfo else ""
    secure = "rediss" if scheme.lower().startswith("rediss") else "redis"
    return addresses, f"{secure}://{at}{address}/{path}{question}{query}"


def _unreadable(exc: ValueError) -> ConfigurationError:
    """Return an error without Python's text about a port, which may be a part of an unescaped password."""
    said = str(exc)
    if not said.startswith("Invalid value for '"):
        said = "no host and port can be read from it; write / ; , @ in a password as %2F and the like"
    return ConfigurationError(f"ha_beat_redis_url: {said}")
