"""Redaction of secrets in everything that is shown: logs, CLI output, status."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

_HIDDEN = "***"
_SECRET = re.compile(r"pass|pwd|secret|token|credential|username", re.IGNORECASE)
_SHOWN_CHARACTERS = 80

#: Separator between the URLs of a list.
NEXT_URL = re.compile(r"(?<=[;,])\s*(?=[A-Za-z][\w+.-]*://)")
_SECRET_IN_QUERY = re.compile(r"((?:^|[&;])[^=&;]*(?:pass|pwd|secret|token|credential)[^=&;]*=)[^&;]*", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]*\]|[\w.-]*)(?::[0-9]*)?")


def redact_url(url: str) -> str:
    """Return the URL without its secrets.

    Secrets are passwords before the host and in the query string, in each part of a list such as
    `sentinel://:pw@h1:26379;sentinel://:pw@h2:26379`. A part that is ambiguous is hidden too.
    """
    return "".join(_redact_one(part) for part in NEXT_URL.split(url))


def _redact_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    front, question, query = rest.partition("?")
    if "@" in query:
        return f"{scheme}{separator}{_HIDDEN}"  # ambiguous: a raw '?' in the password, or an '@' in the query
    userinfo, at, where = front.rpartition("@")
    host, slash, path = where.partition("/")
    if not all(_HOST.fullmatch(name.strip()) for name in re.split("[;,]", host)):
        host = _HIDDEN  # for example ':password' instead of host and port
    user, colon, _ = userinfo.partition(":")
    shown = f"{user}:{_HIDDEN}" if colon and re.fullmatch(r"[\w.-]*", user) else _HIDDEN
    query = _SECRET_IN_QUERY.sub(rf"\1{_HIDDEN}", query)
    return f"{scheme}{separator}{shown + at if at else ''}{host}{slash}{path}{question}{query}"


def redact(value: object, name: str = "") -> object:
    """Return the value in plain types, without secrets. A value is a secret if its `name` is like `password`."""
    if value is None:
        return None
    if _SECRET.search(name):
        return _HIDDEN
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_url(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {str(key): redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return f"<{type(value).__name__}>"  # the repr of an object may contain secrets


def secrets_in(value: object, name: str = "") -> Iterator[str]:
    """Yield the secrets in a setting: passwords in URLs, raw and decoded, and values with a name like ``password``."""
    if isinstance(value, str):
        if _SECRET.search(name):
            yield value
        for part in NEXT_URL.split(value) if "://" in value else ():
            userinfo, at, _ = part.partition("://")[2].partition("?")[0].rpartition("@")
            password = userinfo.partition(":")[2]
            if at and password:
                yield from {password, unquote(password)}
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from secrets_in(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item, name)


def shown(name: str, value: object) -> str:
    """Return a value for a message, as one short line without secrets."""
    if name == "redis_url" and isinstance(value, str):
        value = redact_url(value)
    elif name == "redis_options" and not isinstance(value, Mapping):
        return "(not shown)"  # invalid JSON, or a list, may contain a password anywhere
    text = repr(redact(value, name))
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
