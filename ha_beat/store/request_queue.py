"""Requests to the leader, in Redis.

A request waits in a hash until the leader answers it, its deadline passes or the caller withdraws it. The answer can be
read under the request's id for an hour. Every step of a request is refused once the request no longer waits: a
withdrawn request is never carried out, and a request whose answer was lost is not carried out twice.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ha_beat.clock import Clock
from ha_beat.errors import HaBeatError, StoreError
from ha_beat.reasons import ReplyCode, RequestKind, TermEnd
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason, new_token
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Script, text, whole
from ha_beat.store.stored_values import MALFORMED, ms_in, number_in, text_in

if TYPE_CHECKING:
    import redis

#: Seconds for which an answer can be read.
ANSWER_LIFETIME = 3600.0

#: Requests that may wait at the same time.
MOST_WAITING = 100

#: Seconds between two polls for an answer.
_POLL_INTERVAL = 0.05

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/ha-beat/request")


class NoAnswer(HaBeatError):
    """No leader answered in time. The request was withdrawn: it was not and will not be carried out."""


class TooManyRequests(HaBeatError):
    """Too many requests are waiting. The request was not added."""


@dataclass(frozen=True, slots=True)
class Request:
    """Request to the leader. ``by`` names the caller; times are the server's, in ms since the Unix epoch.

    ``attempts`` counts the terms that began to carry it out and did not report the outcome.
    """

    kind: RequestKind
    args: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    id: str = field(default_factory=new_token)
    asked_ms: int = 0
    deadline_ms: int = 0
    attempts: int = 0

    def task_id(self) -> str:
        """Return the id of the message of a manual run. It is the same under every leader."""
        return str(uuid.uuid5(_NAMESPACE, self.id))

    def encoded(self) -> str:
        """Return the JSON form, without id, times and attempts."""
        return json.dumps({"v": 1, "kind": self.kind, "args": dict(self.args), "by": self.by})

    @classmethod
    def parse(cls, request_id: str, raw: str) -> Request:
        """Return a request from its field in Redis. Its kind is ``UNKNOWN`` if it is malformed or of another kind."""
        try:
            asked_ms, deadline_ms, attempts, body = raw.split(" ", 3)
            found = json.loads(body)
            kind = str(found["kind"])
            return cls(
                kind=RequestKind(kind) if kind in _KINDS else RequestKind.UNKNOWN,
                args=dict(found.get("args") or {}),
                by=text_in(found.get("by")),
                id=request_id,
                asked_ms=ms_in(asked_ms),
                deadline_ms=ms_in(deadline_ms),
                attempts=number_in(attempts),
            )
        except MALFORMED:
            return cls(kind=RequestKind.UNKNOWN, id=request_id)


_KINDS = frozenset(RequestKind)


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer of the leader. The contents of ``data`` depend on ``code``."""

    code: ReplyCode
    data: Mapping[str, Any] = field(default_factory=dict)
    leader: str = ""
    epoch: int = 0

    @property
    def ok(self) -> bool:
        """True if the request was carried out."""
        return self.code.ok

    def encoded(self) -> str:
        """Return the JSON form."""
        return json.dumps({"code": self.code, "data": self.data, "leader": self.leader, "epoch": self.epoch})

    @classmethod
    def parse(cls, raw: str) -> Reply:
        """Return an answer from Redis. A malformed one, or one with an unknown code, has the code ``UNREADABLE``."""
        try:
            found = json.loads(raw)
            data = dict(found["data"])
            return cls(ReplyCode(found["code"]), data, text_in(found["leader"]), number_in(found["epoch"]))
        except MALFORMED:
            return cls(ReplyCode.UNREADABLE)


@dataclass(frozen=True, slots=True)
class MetaChange:
    """Change of a field of the ledger, made together with an answer. An empty value removes the field."""

    name: str
    value: str


class Requests:
    """Requests of one cluster. Every method raises ``StoreUnavailable`` or ``StoreRefused`` if Redis fails."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys, journal_size: int = 10_000) -> None:
        self._client = client
        self._keys = keys
        self._journal_size = journal_size
        self._post = Script("post_request")
        self._read = Script("waiting_requests")
        self._withdraw = Script("withdraw_request")
        self._attempt = Script("count_attempt")
        self._answer = Script("answer_request")
        self._keep_pauses = Script("keep_pauses")

    # --- Callers

    def ask(self, request: Request, clock: Clock, timeout: float) -> Reply:
        """Post a request and wait up to ``timeout`` seconds for the answer.

        Raises:
            NoAnswer: no leader answered; the request was withdrawn.
            TooManyRequests: the request was not added.
            StoreError: Redis failed. A request that was added expires ``timeout`` after it was posted.
        """
        deadline = clock.elapsed() + timeout
        try:
            reply = self.post(request, lifetime=timeout)
            while reply is None and clock.elapsed() < deadline:
                clock.sleep(_POLL_INTERVAL)
                reply = self.answer_to(request.id)
        except (KeyboardInterrupt, SystemExit):
            with suppress(StoreError):
                self.withdraw(request.id)
            raise
        if reply is not None:
            return reply
        withdrawn, reply = self.withdraw(request.id)
        if reply is not None:
            return reply
        if withdrawn:
            raise NoAnswer(f"no leader answered within {timeout:g} s; the request was withdrawn")
        raise NoAnswer("the request expired without an answer")

    def post(self, request: Request, lifetime: float) -> Reply | None:
        """Add a request. Return its answer if it was answered before, else ``None``.

        Raises:
            TooManyRequests: the request was not added.
        """
        answer, detail = self._post(
            self._client(),
            [self._keys.requests, self._keys.answer(request.id), self._keys.progress],
            [request.id, request.encoded(), round(lifetime * 1000), self._keys.wake, MOST_WAITING],
        )
        if text(answer) == "full":
            raise TooManyRequests(f"{MOST_WAITING} requests wait for an answer already")
        return Reply.parse(text(detail)) if text(answer) == "answered" else None

    def answer_to(self, request_id: str) -> Reply | None:
        """Return the answer to a request, or ``None`` if there is none."""
        raw = self._get(lambda client: client.get(self._keys.answer(request_id)))
        return None if raw is None else Reply.parse(text(raw))

    def withdraw(self, request_id: str) -> tuple[bool, Reply | None]:
        """Withdraw a request. Return whether it was waiting, and its answer if it has one."""
        keys = [self._keys.requests, self._keys.answer(request_id), self._keys.progress]
        removed, raw = self._withdraw(self._client(), keys, [request_id])
        return bool(removed), Reply.parse(text(raw)) if text(raw) else None

    def pauses(self) -> dict[str, str]:
        """Return the ledger's records of the cluster's pause and of the entries' pauses, by field; empty for none."""
        fields = [Pause.FIELD, entry_pauses.FIELD]
        found = self._get(lambda client: client.hmget(self._keys.ledger, fields))
        return {name: "" if raw is None else text(raw) for name, raw in zip(fields, found, strict=True)}

    # --- The leader

    def last_step(self, request_id: str) -> int:
        """Return the number of the last step of a waiting request that was begun, or 0."""
        return whole(self._get(lambda client: client.hget(self._keys.progress, request_id)))

    def count_attempt(self, term: Term, request_id: str, change: int = 1) -> TermEnd | bool:
        """Count an attempt at a request before its work begins, or undo the count with a ``change`` of -1.

        Returns:
            How the term ended, or False if the request no longer waits (in both cases nothing was done), or True.

        Raises:
            StoreError: the outcome is unknown, or Redis refused.
        """
        keys = [self._keys.lease, self._keys.requests]
        reply = self._attempt(self._client(), keys, [term.epoch, term.nonce, request_id, change])
        return _outcome(*reply)

    def keep_pauses(self, term: Term, pauses: Mapping[str, str]) -> None:
        """Restore pauses, by field, that an earlier incarnation of the ledger had, and note that none is missing.

        Does nothing if the term is not current.
        """
        args = [term.epoch, term.nonce, term.gen, *(part for pause in pauses.items() for part in pause)]
        self._keep_pauses(self._client(), [self._keys.lease, self._keys.ledger], args)

    def waiting(self) -> tuple[list[Request], int]:
        """Return the waiting requests, oldest first, and the server's time in ms.

        A request whose id is not valid UTF-8 cannot be answered. It is removed.
        """
        client = self._client()
        flat, server_ms = self._read(client, [self._keys.requests, self._keys.progress], [])
        waiting = dict(zip(flat[::2], flat[1::2], strict=True))
        invalid = [name for name in waiting if isinstance(name, bytes) and text(name).encode() != name]
        if invalid:
            self._get(lambda client: client.hdel(self._keys.requests, *invalid))
        found = [Request.parse(text(name), text(raw)) for name, raw in waiting.items() if name not in invalid]
        return sorted(found, key=lambda request: (request.asked_ms, request.id)), int(server_ms)

    def answer(
        self, term: Term, request: Request, reply: Reply, *, record: str = "", change: MetaChange | None = None
    ) -> TermEnd | bool:
        """Answer a request under a term, together with a journal record and a change of the ledger.

        Returns:
            How the term ended, or False if the request no longer waits (in both cases nothing was done), or True.

        Raises:
            StoreError: the outcome is unknown, or Redis refused. Repeating the call is safe.
        """
        keys = self._keys
        changed = (change.name, change.value) if change else ("", "")
        lifetime_ms = round(ANSWER_LIFETIME * 1000)
        answer = self._answer(
            self._client(),
            [keys.lease, keys.ledger, keys.journal, keys.requests, keys.answer(request.id), keys.progress],
            [
                *(term.epoch, term.nonce, term.gen, request.id, reply.encoded(), lifetime_ms),
                *(self._journal_size, record, *changed),
            ],
        )
        return _outcome(*answer)

    def _get(self, command: Callable[[redis.Redis], Any]) -> Any:
        with mapped_redis_errors():
            return command(self._client())


def _outcome(answer: Any, code: Any) -> TermEnd | bool:
    """Return how the term ended, or False if the request no longer waits (nothing was done), or True."""
    return fence_reason(text(code)) if text(answer) == "fenced" else text(answer) != "withdrawn"
