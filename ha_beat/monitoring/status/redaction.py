"""Keeps credentials out of what is shown."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(://)[^/\s@\"']+@")


def redacted(text: str) -> str:
    """Without user and password in URLs, which the messages of some exceptions contain."""
    return _CREDENTIALS.sub(r"\1***@", text)
