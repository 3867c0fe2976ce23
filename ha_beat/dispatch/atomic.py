"""Dispatch where the broker is the lease's Redis: one script enqueues and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from kombu.exceptions import OperationalError
from redis import exceptions as redis_errors

from ha_beat.dispatch.broker import BrokerLink
from ha_beat.dispatch.capture import Command, captured
from ha_beat.dispatch.message import NothingPublished, publish
from ha_beat.dispatch.types import Answer, FencedOff, Operation
from ha_beat.errors import StoreUnavailable
from ha_beat.lease import Keys, Term
from ha_beat.redis_scripts import Script, text


class AtomicDispatcher:
    """Enqueues through the broker's own Redis connection, so that a lease that is elsewhere is refused."""

    def __init__(self, app: Celery, link: BrokerLink, keys: Keys, journal_size: int) -> None:
        self._app = app
        self._link = link
        self._keys = keys
        self._journal_size = journal_size
        self._script = Script("dispatch")

    def prepare(
        self,
        entry: ScheduleEntry,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> tuple[Command, ...]:
        channel = self._link.channel()
        producer = self._link.producer()
        try:
            with captured(channel) as commands:
                publish(self._app, producer, task_name=str(entry.task), args=args, kwargs=kwargs, options=options)
        except (OperationalError, redis_errors.ConnectionError, redis_errors.TimeoutError) as exc:
            raise StoreUnavailable(str(exc)) from exc
        if not commands:
            raise NothingPublished(str(entry.task))
        return tuple(commands)

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        flat: list[Any] = [term.epoch, term.nonce, term.gen, term.run_id, self._journal_size, len(operations)]
        for operation in operations:
            flat += (operation.entry, operation.expected, operation.row, operation.request, operation.step)
            flat += (len(operation.records), *operation.records)
            commands: Sequence[Command] = operation.message or ()
            flat.append(len(commands))
            for command in commands:
                flat += (len(command), *command)
        keys = [self._keys.lease, self._keys.ledger, self._keys.journal, self._keys.requests]
        answer, *rest = (text(part) for part in self._script(self._link.client(), keys, flat))
        if answer == "fenced":
            raise FencedOff(rest[0])
        return [Answer(kind, detail) for kind, detail in zip(rest[::2], rest[1::2], strict=True)]  # type: ignore[arg-type]

    def holds_lease(self, term: Term) -> bool:
        try:
            nonce = self._link.client().hget(self._keys.lease, "nonce")
        except (redis_errors.RedisError, OSError) as exc:
            raise StoreUnavailable(str(exc)) from exc
        return nonce is not None and text(nonce) == term.nonce
