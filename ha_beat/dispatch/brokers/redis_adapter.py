"""Adapter for a Redis that does not hold the lease."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import redis
from celery import Celery
from redis.exceptions import ResponseError

from ha_beat.dispatch.brokers.adapter import BrokerAdapter, Publish, Sent
from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.dispatch.messages.capture import captured
from ha_beat.dispatch.messages.deferred import Arguments
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome
from ha_beat.store.redis_errors import as_store_error, code_of, in_words


class RedisAdapter(BrokerAdapter):
    """Adapter for one server. It writes a message to all of its queues in one transaction."""

    def __init__(self, app: Celery, timeout: float) -> None:
        super().__init__(app, timeout)
        self._link = BrokerLink(app, timeout, failover=True)

    def open(self) -> Any:
        channel = self._link.channel()
        self._connection = channel.connection.client
        return channel

    @property
    def alive(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        if self._connection is not None:
            self._connection = None
            with suppress(Exception):
                self._link.channel().pool.disconnect()

    def check(self) -> bool:
        # The pool verifies a connection that is taken. The next command takes the same one.
        redis.Redis(connection_pool=self._link.channel().pool, single_connection_client=True).close()
        return False

    def probe(self) -> None:
        self._link.client().ping()

    def is_message_error(self, exc: Exception) -> bool:
        if isinstance(exc, ResponseError):
            return code_of(exc) in ("", "NOPERM")
        return super().is_message_error(exc)

    def _put(self, publish: Publish, arguments: Arguments) -> Sent:
        try:
            with captured(self._link.channel()) as commands:
                publish(arguments)
            self.check()
        except Exception as exc:
            return self._not_sent(exc)
        if not commands:
            return Sent(PublishOutcome.REFUSED, "no queue is bound to its exchange")
        try:
            pipe: Any  # untyped in redis-py
            with self._link.client().pipeline(transaction=len(commands) > 1) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies = pipe.execute(raise_on_error=False)
        except Exception as exc:
            error = as_store_error(exc)
            if isinstance(error, StoreUnavailable) and error.acted:
                return Sent(PublishOutcome.UNKNOWN, str(error), broken=True)
            return self._not_sent(exc)
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if len(failed) == len(replies):
            return self._not_sent(failed[0])
        # A transaction does not roll back: at least one queue has the message.
        return Sent(PublishOutcome.ACCEPTED, f"not every queue took it: {in_words(failed[0])}" if failed else "")

    def _not_sent(self, exc: Exception) -> Sent:
        if self.is_message_error(exc):
            return Sent(PublishOutcome.REFUSED, in_words(exc))
        unavailable = StoreUnavailable(in_words(exc), acted=False)
        unavailable.same_for_all = as_store_error(exc).same_for_all
        raise unavailable from exc
