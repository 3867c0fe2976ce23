"""Text of exceptions and names for the log, the records and the status: one line, without secrets."""

from __future__ import annotations

import re

#: Most characters of a line.
_MAX_LINE = 500

#: Fewest characters of a secret that is masked wherever it appears. A shorter one would mask parts of words.
_FEWEST_CHARACTERS = 4

_HIDDEN = "***"

#: User and password in a URL: up to the last ``@`` before the next space or URL, because both may contain ``/`` and
#: ``@``.
_IN_URL = re.compile(r"://(?:(?!://)\S)*@")

_NAMED = re.compile(
    r"""((?:passw(?:or)?d|passphrase|pwd|secret|token|credential|api_?key)\w*   # the name
        (?:=|["']\s*[:=]\s*|["']\s*,\s*(?=["'])))                              # in a URL, a DSN, a dict or a pair
        (?:"[^"]*"|'[^']*'|[^\s&;,)}\]]+)                                      # the value
    """,
    re.IGNORECASE | re.VERBOSE,
)

_known: set[str] = set()


def keep_secret(secret: str) -> None:
    """Mask a secret of the app's settings in all texts from now on."""
    if len(secret) >= _FEWEST_CHARACTERS:
        _known.add(secret)


def without_secrets(text: str) -> str:
    """Return a text without known secrets, users and passwords in URLs, and values with names like ``password``."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return _NAMED.sub(rf"\1{_HIDDEN}", _IN_URL.sub(f"://{_HIDDEN}@", text))


def printable(text: object) -> str:
    """Return a text in which lone surrogates are escaped, because neither Redis nor a terminal accepts them.

    They come from files with a broken escape. ASCII is returned without a copy.
    """
    text = str(text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def exception_line(exc: BaseException) -> str:
    """Return an exception's type and text in one line without secrets. Never raises, even if the exception does."""
    name = type(exc).__name__
    try:
        text = " ".join(printable(exc).split())
    except Exception:
        return f"{name} (its text can't be read)"
    line = without_secrets(f"{name}: {text}" if text else name)
    return line if len(line) <= _MAX_LINE else line[:_MAX_LINE] + "…"
