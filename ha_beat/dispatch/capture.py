"""Catches the final Redis commands of a message that kombu publishes, instead of running them.

Celery and kombu build the message in every respect (routes, exchanges, priorities, serializers, signing, signals); only
the last step, the write to the queue, is collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from kombu import Connection
from kombu.utils.json import dumps

from ha_beat.errors import HaBeatError

Command = tuple[str, ...]


class OutsideCapture(HaBeatError):
    """Something published through the capturing channel while nobody collected."""


@cache
def capturing_transport(transport: type) -> type:
    """The Redis transport given (plain, TLS or Sentinel), with a channel that collects."""
    channel: type[Any] = transport.Channel  # type: ignore[attr-defined]

    class CapturingChannel(channel):  # type: ignore[misc]
        sink: list[Command] | None = None

        def _put(self, queue: str, message: Any, **_: Any) -> None:
            priority = self._get_message_priority(message, reverse=False)
            self._collect("LPUSH", self._q_for_pri(queue, priority), dumps(message))
            # kombu before 5.7 knows no expiring queues here.
            expires_ms = getattr(self, "_expires", {}).get(queue)
            if expires_ms:
                for step in self.priority_steps:
                    self._collect("PEXPIRE", self._q_for_pri(queue, step), str(expires_ms))

        def _put_fanout(self, exchange: str, message: Any, routing_key: str, **_: Any) -> None:
            topics_of = getattr(self, "_get_publish_topics", None)
            topics = topics_of(exchange, routing_key) if topics_of else [self._get_publish_topic(exchange, routing_key)]
            payload = dumps(message)
            for topic in topics:
                self._collect("PUBLISH", topic, payload)

        def _collect(self, command: str, key: str, value: str) -> None:
            if self.sink is None:
                raise OutsideCapture(f"{command} {key} outside of a dispatch")
            self.sink.append((command, f"{self.global_keyprefix}{key}", value))

    return type("CapturingTransport", (transport,), {"Channel": CapturingChannel})


class CapturingConnection(Connection):
    """A connection whose channels collect. Its settings are those of the connection it is made from."""

    @classmethod
    def like(cls, connection: Connection, **transport_options: Any) -> CapturingConnection:
        settings = dict(connection._info(resolve=False))  # noqa: SLF001 -- what Connection.clone() uses
        settings["transport_options"] = {**(settings["transport_options"] or {}), **transport_options}
        return cls(**settings)

    def get_transport_cls(self) -> type:
        transport: Any = super().get_transport_cls()
        return capturing_transport(transport)


@contextmanager
def captured(channel: Any) -> Iterator[list[Command]]:
    """Collect what is published through the channel."""
    commands: list[Command] = []
    channel.sink = commands
    try:
        yield commands
    finally:
        channel.sink = None
