"""Answers by path, without I/O: a request is a method and a path, and an answer is a value."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ha_beat.clock import Clock
from ha_beat.exception_text import without_secrets
from ha_beat.monitoring.status import Problems, ReplicaStatus, document, why_not_live, why_not_ready
from ha_beat.monitoring.wording import health

#: Seconds for which an expensive answer is reused.
_FRESH = 0.2

#: Seconds between two updates of a stream. A change of leader is sent immediately.
UPDATE_INTERVAL = 1.0

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"

_SAFE = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_NOTHING = ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Complete answer, or the beginning of a stream of updates."""

    status: int
    body: bytes
    content_type: str = _TEXT
    headers: tuple[tuple[str, str], ...] = (_NOTHING,)
    stream: bool = False

    def all_headers(self) -> list[tuple[str, str]]:
        length = [] if self.stream else [("Content-Length", str(len(self.body)))]
        return [("Content-Type", self.content_type), *length, *_SAFE, *self.headers]


class Site:
    """Pages of one replica. Used by one thread."""

    def __init__(self, status: ReplicaStatus, metrics: Callable[[], bytes], clock: Clock) -> None:
        self._status = status
        self._clock = clock
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._pages: dict[str, Callable[[], HttpAnswer]] = {
            "/livez": lambda: _health(why_not_live(status), "live"),
            "/readyz": lambda: _health(why_not_ready(status), "ready"),
            "/leader": self._leader,
            "/status": lambda: HttpAnswer(200, self.status(), _JSON),
            "/metrics": lambda: HttpAnswer(
                200, self._fresh("/metrics", metrics), "text/plain; version=0.0.4; charset=utf-8"
            ),
            "/": _page,
            "/events": lambda: HttpAnswer(200, b"retry: 1000\n\n", "text/event-stream", stream=True),
        }

    def answer(self, method: str, target: str) -> HttpAnswer:
        """Return the answer to a request. Never raises."""
        path = target.partition("?")[0]
        page = self._pages.get(path)
        if page is None:
            return problem(404, "Not found. Paths: /livez /readyz /leader /status /metrics /")
        if method not in {"GET", "HEAD"}:
            return problem(405, "Only GET and HEAD are allowed.", ("Allow", "GET, HEAD"))
        try:
            return page()
        except Exception as exc:
            return problem(503, f"The answer could not be built: {type(exc).__name__}")

    def status(self) -> bytes:
        return self._fresh("/status", lambda: json.dumps(document(self._status), separators=(",", ":")).encode())

    def role(self) -> object:
        """Return a value that changes when streams must be updated immediately."""
        lease = self._status.snapshot.lease
        return self._status.role, bool(self._status.unreachable), lease and (lease.epoch, lease.state)

    def update(self) -> bytes:
        """Return the status as a server-sent event, or a comment if it cannot be built. Never raises."""
        try:
            return b"event: status\ndata: " + self.status() + b"\n\n"
        except Exception:
            return b": the status could not be built\n\n"

    def _leader(self) -> HttpAnswer:
        status = self._status
        term, lease = status.term, status.snapshot.lease
        body: dict[str, Any] = {"leader": term is not None, "id": status.replica.id}
        if term is not None:
            body["epoch"] = term.epoch
        else:
            body["last_seen_leader"] = lease.holder if lease and lease.held else None
        return HttpAnswer(503 if term is None else 200, json.dumps(body).encode() + b"\n", _JSON)

    def _fresh(self, name: str, make: Callable[[], bytes]) -> bytes:
        now = self._clock.elapsed()
        kept = self._kept.get(name)
        if kept is None or now - kept[0] > _FRESH:
            kept = self._kept[name] = (now, make())
        return kept[1]


def problem(status: int, text: str, *headers: tuple[str, str]) -> HttpAnswer:
    return HttpAnswer(status, text.encode() + b"\n", headers=(_NOTHING, *headers))


def _health(problems: Problems, word: str) -> HttpAnswer:
    if not problems:
        return HttpAnswer(200, f"{word}\n".encode())
    lines = [f"not {word}: {code}: {why}\n" for code, why in zip(problems, health(problems), strict=True)]
    return HttpAnswer(503, without_secrets("".join(lines)).encode())


_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def _page() -> HttpAnswer:
    """Return the page, with a policy that allows its inline script and style and nothing else."""
    html = (files("ha_beat.monitoring.http") / "page.html").read_text("utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; img-src data:"
    )
    return HttpAnswer(200, html.encode(), "text/html; charset=utf-8", (("Content-Security-Policy", policy),))
