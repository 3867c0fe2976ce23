"""Requests to the leader: asked by anyone who can reach Redis, carried out by whoever leads, once.

A request has an id of its own. It waits in a hash until the leader answers it, its deadline passes, or whoever asked
takes it back; the answer stands under the id for an hour. Each act on a request is refused once it waits no more, so
that a request that was taken back is never carried out later, and one whose answer was lost is not carried out twice.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from redis.exceptions import RedisError

from ha_beat.clock import Clock
from ha_beat.errors import HaBeatError, StoreError, StoreUnavailable
from ha_beat.reasons import TermEnd
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason, new_token
from ha_beat.store.ledger import from_micros
from ha_beat.store.scripts import Script, text, whole

if TYPE_CHECKING:
    import redis

Action = Literal["step_down", "pause", "resume", "run", "backfill", "next", "report"]

#: Seconds for which an answer can be read.
ANSWER_LIFETIME = 3600.0

#: More than so many do not wait at once.
MOST_WAITING = 100

#: Seconds between looks for an answer.
_LOOK_INTERVAL = 0.05

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/ha-beat/request")


class NobodyAnswered(HaBeatError):
    """No leader answered in time. The request was taken back: it was not and will not be carried out."""


class TooManyRequests(HaBeatError):
    """Too many requests wait already; nothing was asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """Something asked of the leader. ``by`` says who asks; the times are the server's, in ms since the Unix epoch."""

    action: str
    args: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    id: str = field(default_factory=new_token)
    asked_ms: int = 0
    deadline_ms: int = 0

    def task_id(self) -> str:
        """Of the message that a manual run sends: the same, whichever leader sends it."""
        return str(uuid.uuid5(_NAMESPACE, self.id))

    def encoded(self) -> str:
        return json.dumps({"v": 1, "action": self.action, "args": dict(self.args), "by": self.by})

    @classmethod
    def parse(cls, request_id: str, raw: str) -> Request:
        """A request as it waits; one that can't be read has the action ``""``."""
        asked_ms, _, rest = raw.partition(" ")
        deadline_ms, _, body = rest.partition(" ")
        try:
            found = json.loads(body)
            return cls(
                action=str(found["action"]),
                args=dict(found.get("args") or {}),
                by=str(found.get("by") or ""),
                id=request_id,
                asked_ms=int(asked_ms),
                deadline_ms=int(deadline_ms),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls(action="", id=request_id)


@dataclass(frozen=True, slots=True)
class Reply:
    """The leader's answer: whether it was done, one line for a person, and the particulars."""

    ok: bool
    line: str
    data: Mapping[str, Any] = field(default_factory=dict)
    leader: str = ""
    epoch: int = 0

    def encoded(self) -> str:
        return json.dumps(
            {"ok": self.ok, "line": self.line, "data": self.data, "leader": self.leader, "epoch": self.epoch}
        )

    @classmethod
    def parse(cls, raw: str) -> Reply:
        """An answer as it stands in Redis."""
        try:
            found = json.loads(raw)
            return cls(found["ok"], found["line"], found["data"], found["leader"], found["epoch"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls(ok=False, line="the leader's answer can't be read by this version of ha_beat")


@dataclass(frozen=True, slots=True)
class MetaChange:
    """A field of the ledger's own to be set, or with an empty value removed, in one act with an answer."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Pause:
    """The cluster enqueues nothing by schedule. ``since_ms`` is since the Unix epoch."""

    FIELD: ClassVar[str] = "m:paused"

    since_ms: int
    by: str = ""
    reason: str = ""

    @property
    def since(self) -> datetime:
        return from_micros(self.since_ms * 1000)

    def in_words(self) -> str:
        """Since when, by whom and why."""
        by = f" by {self.by}" if self.by else ""
        return f"since {self.since:%Y-%m-%d %H:%M:%S} UTC{by}" + (f": {self.reason}" if self.reason else "")

    def as_data(self) -> dict[str, Any]:
        return {"since_ms": self.since_ms, "by": self.by, "reason": self.reason}

    def encoded(self) -> str:
        return json.dumps(self.as_data())

    @classmethod
    def parse(cls, raw: str) -> Pause:
        """A pause as it stands in the ledger. One that can't be read is a pause all the same."""
        try:
            found = json.loads(raw)
            return cls(int(found["since_ms"]), str(found.get("by") or ""), str(found.get("reason") or ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls(0, reason="its record can't be read")


class Requests:
    """The requests of one cluster. Every method raises ``StoreUnavailable`` or ``StoreRefused`` when Redis fails."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys, journal_size: int = 10_000) -> None:
        self._client = client
        self._keys = keys
        self._journal_size = journal_size
        self._post = Script("request")
        self._read = Script("requests")
        self._withdraw = Script("withdraw")
        self._answer = Script("answer")
        self._keep_pause = Script("keep_pause")

    # --- For whoever asks

    def ask(self, request: Request, clock: Clock, timeout: float) -> Reply:
        """Ask, and wait up to ``timeout`` seconds for the answer.

        Raises:
            NobodyAnswered: and the request was taken back.
            TooManyRequests: nothing was asked.
            StoreError: Redis failed; a request under way lapses by its deadline, ``timeout`` after it was asked.
        """
        until = clock.elapsed() + timeout
        try:
            reply = self.post(request, lifetime=timeout)
            while reply is None and clock.elapsed() < until:
                clock.sleep(_LOOK_INTERVAL)
                reply = self.answer_to(request.id)
        except (KeyboardInterrupt, SystemExit):
            # What nobody waits for any more shall not be done.
            with suppress(StoreError):
                self.withdraw(request.id)
            raise
        if reply is not None:
            return reply
        withdrawn, reply = self.withdraw(request.id)
        if reply is not None:
            return reply
        if withdrawn:
            raise NobodyAnswered(f"no leader answered within {timeout:g} s; the request was taken back")
        raise NobodyAnswered("the request is gone, without an answer")

    def post(self, request: Request, lifetime: float) -> Reply | None:
        """Leave a request for the leader; the answer, where there is one already."""
        answer, detail = self._post(
            self._client(),
            [self._keys.requests, self._keys.answer(request.id)],
            [request.id, request.encoded(), round(lifetime * 1000), self._keys.wake, MOST_WAITING],
        )
        if text(answer) == "full":
            raise TooManyRequests(f"{MOST_WAITING} requests wait already, and nobody answers them")
        return Reply.parse(text(detail)) if text(answer) == "answered" else None

    def answer_to(self, request_id: str) -> Reply | None:
        try:
            raw: Any = self._client().get(self._keys.answer(request_id))
        except (RedisError, OSError) as exc:
            raise StoreUnavailable(f"{type(exc).__name__}: {exc}") from exc
        return None if raw is None else Reply.parse(text(raw))

    def withdraw(self, request_id: str) -> tuple[bool, Reply | None]:
        """Take a request back: whether it was still waiting, and the answer, where there is one."""
        removed, raw = self._withdraw(
            self._client(), [self._keys.requests, self._keys.answer(request_id), self._keys.ledger], [request_id]
        )
        return bool(removed), Reply.parse(text(raw)) if text(raw) else None

    def pause(self) -> Pause | None:
        """The pause in force."""
        try:
            raw: Any = self._client().hget(self._keys.ledger, Pause.FIELD)
        except (RedisError, OSError) as exc:
            raise StoreUnavailable(f"{type(exc).__name__}: {exc}") from exc
        return None if raw is None else Pause.parse(text(raw))

    # --- For the leader

    def progress(self, request_id: str) -> int:
        """The last step of a waiting request that was carried out, or at least begun; 0 for none."""
        try:
            raw: Any = self._client().hget(self._keys.ledger, f"r:{request_id}")
        except (RedisError, OSError) as exc:
            raise StoreUnavailable(f"{type(exc).__name__}: {exc}") from exc
        return whole(raw)

    def keep_pause(self, term: Term, raw: str) -> None:
        """Put a pause back into a ledger that has lost it. Where the term is not the current one, nothing is done."""
        self._keep_pause(self._client(), [self._keys.lease, self._keys.ledger], [term.epoch, term.nonce, raw])

    def waiting(self) -> tuple[list[Request], int]:
        """The requests that wait, oldest first, and the server's time in ms.

        What waits under an id that is no text is nobody's and can't be answered: it is removed.
        """
        client = self._client()
        flat, server_ms = self._read(client, [self._keys.requests], [])
        waiting = dict(zip(flat[::2], flat[1::2], strict=True))
        strange = [name for name in waiting if isinstance(name, bytes) and text(name).encode() != name]
        if strange:
            try:
                client.hdel(self._keys.requests, *strange)
            except (RedisError, OSError) as exc:
                raise StoreUnavailable(f"{type(exc).__name__}: {exc}") from exc
        found = [Request.parse(text(name), text(raw)) for name, raw in waiting.items() if name not in strange]
        return sorted(found, key=lambda request: (request.asked_ms, request.id)), int(server_ms)

    def answer(
        self, term: Term, request: Request, reply: Reply, *, record: str = "", change: MetaChange | None = None
    ) -> TermEnd | None:
        """Answer under a term.

        Returns:
            Why the term is over (nothing was done), or ``None``. A request that waits no more is left.

        Raises:
            StoreError: the outcome is unknown, or it was refused; asking again is safe.
        """
        answer, detail = self._answer(
            self._client(),
            [
                self._keys.lease,
                self._keys.ledger,
                self._keys.journal,
                self._keys.requests,
                self._keys.answer(request.id),
            ],
            [
                term.epoch,
                term.nonce,
                term.gen,
                request.id,
                reply.encoded(),
                round(ANSWER_LIFETIME * 1000),
                self._journal_size,
                record,
                change.name if change else "",
                change.value if change else "",
            ],
        )
        return fence_reason(text(detail)) if text(answer) == "fenced" else None
