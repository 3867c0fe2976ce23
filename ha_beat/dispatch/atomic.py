"""Dispatch where the broker is the lease's Redis: one script enqueues and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from kombu.exceptions import OperationalError
from redis import exceptions as redis_errors

from ha_beat.dispatch.batch import BatchScript
from ha_beat.dispatch.broker import BrokerLink
from ha_beat.dispatch.capture import Command, captured
from ha_beat.dispatch.lease_marker import StoreMark
from ha_beat.dispatch.message import NothingPublished, publish
from ha_beat.dispatch.protocol import Answer, OpenClaim, Operation
from ha_beat.errors import StoreUnavailable
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow
from ha_beat.store.redis_errors import code_of, in_words, mapped_redis_errors
from ha_beat.store.scripts import text


def _cause(exc: Exception) -> Exception:
    """What kombu has wrapped."""
    cause = exc.__cause__
    return cause if isinstance(exc, OperationalError) and isinstance(cause, Exception) else exc


def _is_the_brokers(cause: Exception) -> bool:
    """Whether this concerns every entry; else it is the fault of one, which must not hold up the others.

    kombu wraps a mistyped compression (``KeyError``) and a queue's key of another type just as a lost connection.
    """
    if isinstance(cause, redis_errors.ResponseError):
        return code_of(cause) not in ("", "NOPERM")
    return isinstance(cause, OperationalError | redis_errors.RedisError | OSError) and not isinstance(
        cause, redis_errors.DataError
    )


class AtomicDispatcher:
    """Enqueues through the broker's own Redis connection, so that a lease that is elsewhere is refused."""

    def __init__(
        self, app: Celery, link: BrokerLink, keys: Keys, journal_size: int, mark: StoreMark | None = None
    ) -> None:
        self._app = app
        self._link = link
        self._keys = keys
        self._mark = mark
        self._batch = BatchScript(keys, journal_size)
        self.ledger = Ledger(link.client, keys)

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
        except (OperationalError, redis_errors.RedisError, OSError) as exc:
            cause = _cause(exc)
            if _is_the_brokers(cause):
                raise StoreUnavailable(in_words(cause)) from exc
            raise cause from None
        if not commands:
            raise NothingPublished(str(entry.task))
        return tuple(commands)

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        if self._mark is not None and any(operation.message is not None for operation in operations):
            self._mark.require(term)
        return self._batch.run(self._link.client(), term, operations)

    def holds_lease(self, term: Term) -> bool:
        with mapped_redis_errors():
            nonce = self._link.client().hget(self._keys.lease, "nonce")
        return nonce is not None and text(nonce) == term.nonce

    def open_claims(self, _: Term) -> list[OpenClaim]:
        """None: enqueued and recorded are one."""
        return []

    def give_up(self, _: Term, __: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        return {}

    def settle_up(self) -> None:
        """Nothing is ever owed."""
