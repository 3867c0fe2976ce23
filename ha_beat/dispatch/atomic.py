"""Dispatch to a broker that is the lease's Redis: one script enqueues and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry
from kombu.exceptions import OperationalError
from redis import exceptions as redis_errors

from ha_beat.dispatch.batch import BatchScript
from ha_beat.dispatch.broker import BrokerLink
from ha_beat.dispatch.capture import RedisCommands, captured
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.message import NothingPublished, publish
from ha_beat.dispatch.protocol import Answer, OpenClaim, Operation
from ha_beat.errors import StoreUnavailable
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger, LedgerRow
from ha_beat.store.redis_errors import code_of, in_words, mapped_redis_errors
from ha_beat.store.scripts import text


def _cause(exc: Exception) -> Exception:
    """Return the exception that kombu has wrapped."""
    cause = exc.__cause__
    return cause if isinstance(exc, OperationalError) and isinstance(cause, Exception) else exc


def _is_broker_error(cause: Exception) -> bool:
    """True if the error concerns every entry. Another error concerns one entry, and must not stop the others.

    kombu wraps a mistyped compression (``KeyError``) and a queue key of the wrong type like a lost connection.
    """
    if isinstance(cause, redis_errors.ResponseError):
        return code_of(cause) not in ("", "NOPERM")
    return isinstance(cause, OperationalError | redis_errors.RedisError | OSError) and not isinstance(
        cause, redis_errors.DataError
    )


class AtomicDispatcher:
    """Dispatcher on the broker's own Redis connection, where the script refuses a lease that is kept elsewhere."""

    def __init__(self, app: Celery, link: BrokerLink, keys: Keys, journal_size: int, marker: LeaseMarker) -> None:
        self._app = app
        self._link = link
        self._keys = keys
        self._marker = marker
        self._batch = BatchScript(keys, journal_size)
        self.ledger = Ledger(link.client, keys)

    def prepare(
        self,
        entry: ScheduleEntry,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> RedisCommands:
        channel = self._link.channel()
        producer = self._link.producer()
        try:
            with captured(channel) as commands:
                publish(self._app, producer, task_name=str(entry.task), args=args, kwargs=kwargs, options=options)
        except (OperationalError, redis_errors.RedisError, OSError) as exc:
            cause = _cause(exc)
            if _is_broker_error(cause):
                raise StoreUnavailable(in_words(cause)) from exc
            raise cause from None
        if not commands:
            raise NothingPublished(str(entry.task))
        return RedisCommands(tuple(commands))

    def submit(self, term: Term, operations: Sequence[Operation]) -> list[Answer]:
        if any(operation.message is not None for operation in operations):
            self._marker.require(term)
        return self._batch.run(self._link.client(), term, operations)

    def holds_lease(self, term: Term) -> bool:
        """True if the broker's Redis holds the lease of the term.

        Raises:
            StoreError: the broker did not answer, or refused.
        """
        with mapped_redis_errors():
            nonce = self._link.client().hget(self._keys.lease, "nonce")
        return nonce is not None and text(nonce) == term.nonce

    def open_claims(self, _: Term) -> list[OpenClaim]:
        """Return no claims: a message and its record are written together."""
        return []

    def give_up(self, _: Term, __: Sequence[OpenClaim]) -> Mapping[str, LedgerRow]:
        return {}

    def confirm_late(self) -> None:
        """Do nothing: a message and its record are written together."""
