"""Dispatch to a broker that is the lease's Redis: one script enqueues and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from celery.beat import ScheduleEntry

from ha_beat.dispatch.batch import BatchScript, pack
from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.dispatch.lease_marker import LeaseMarker
from ha_beat.dispatch.messages.build import NothingPublished, Sender, has_own_apply_async, publish
from ha_beat.dispatch.messages.capture import RedisCommands, captured
from ha_beat.dispatch.messages.recipe import Recipes
from ha_beat.dispatch.protocol import Answer, Dispatcher, Operation
from ha_beat.errors import StoreError, StoreRefused
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import text


class AtomicDispatcher(Dispatcher):
    """Dispatcher that runs the dispatch script on the broker's Redis. The script refuses a lease of another server."""

    def __init__(self, send: Sender, link: BrokerLink, keys: Keys, journal_size: int, marker: LeaseMarker) -> None:
        self._send = send
        self._link = link
        self._keys = keys
        self._marker = marker
        self._batch = BatchScript(keys, journal_size)
        self.ledger = Ledger(link.client, keys)
        self.recipes = Recipes(send)

    def prepare(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> RedisCommands:
        channel = self._link.channel()
        producer = self._link.producer()
        if has_own_apply_async(self._send.app, str(entry.task)):
            # The task may reserve something for its message, which it would lose if the broker is unreachable.
            with suppress(StoreRefused), mapped_redis_errors():
                self._link.client().ping()
        with captured(channel) as commands:
            publish(self._send, producer, entry, args, kwargs, options)
        if not commands:
            raise NothingPublished(f"applying {entry.task} published nothing: its exchange has no queue bound")
        return RedisCommands(tuple(commands))

    def prepare_ahead(
        self, entry: ScheduleEntry, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> RedisCommands | None:
        channel = self._link.channel()
        for _ in range(2):
            before = channel.commands_run
            message = self.prepare(entry, args, kwargs, options)
            if channel.commands_run == before:
                return message
            # This message has declared its queue; the next one does not.
        return None

    def pack(self, operation: Operation) -> bytes:
        return pack(operation)

    def broker_error(self, exc: BaseException) -> StoreError | None:
        return self._link.broker_error(exc)

    def submit(
        self, term: Term, operations: Sequence[Operation], meanwhile: Callable[[], None] | None = None
    ) -> list[Answer]:
        if any(operation.message is not None for operation in operations):
            self._marker.require(term)
        return self._batch.run(self._link.client(), term, operations, meanwhile)

    def holds_lease(self, term: Term) -> bool:
        """True if the broker's Redis holds the lease of the term.

        Raises:
            StoreError: the broker did not answer, or refused.
        """
        with mapped_redis_errors():
            nonce = self._link.client().hget(self._keys.lease, "nonce")
        return nonce is not None and text(nonce) == term.nonce
