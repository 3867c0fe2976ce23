"""Capture of the Redis commands that would enqueue a message, in place of running them.

Celery and kombu build the message completely: routes, exchanges, priorities, serializers, signing and signals. Only the
last step, the write to the queue, is collected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from kombu import Connection
from kombu.utils.json import dumps

from ha_beat.dispatch.messages.build import is_timed
from ha_beat.errors import HaBeatError
from ha_beat.headers import HEADER
from ha_beat.store.name_resolution import with_bounded_names

Command = tuple[str, ...]

#: Base class of the mixin for mypy: any channel of a Redis transport.
_AnyChannel: Any = object

#: Commands that carry a message.
_PUSHES = frozenset({"LPUSH", "PUBLISH"})


@dataclass(frozen=True, slots=True)
class RedisCommands:
    """Message as the Redis commands that enqueue it, which the dispatch script runs."""

    commands: tuple[Command, ...]

    @property
    def size(self) -> int:
        return sum(len(part) for command in self.commands for part in command)

    @property
    def timed(self) -> bool:
        return any(is_timed(json.loads(value).get("headers")) for name, _, value in self.commands if name in _PUSHES)

    def restamped(self, header: Mapping[str, Any]) -> RedisCommands:
        return RedisCommands(tuple(_restamped(command, header) for command in self.commands))


def _restamped(command: Command, header: Mapping[str, Any]) -> Command:
    name, key, value = command
    if name not in _PUSHES:
        return command
    message = json.loads(value)
    if HEADER in (message.get("headers") or {}):
        message["headers"][HEADER].update(header)
    return name, key, json.dumps(message)


@dataclass(frozen=True, slots=True)
class FailedCommand:
    """Command of a channel that failed, with its key; empty for a pipeline, whose error names its command."""

    error: Exception
    command: str


class OutsideCapture(HaBeatError):
    """A message was published through a capturing channel outside of :func:`captured`."""


class _Channel(_AnyChannel):  # type: ignore[misc]
    """Mixin for a Redis channel of kombu, which collects the commands that carry messages."""

    sink: list[Command] | None = None
    #: The last of the channel's own commands that failed.
    failed_command: FailedCommand | None = None
    #: Number of times that the channel has run its own commands.
    commands_run = 0

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Run the channel's own commands, such as declarations, and note a failed one."""
        last = ""
        self.commands_run += 1

        def execute(*args: Any, **options: Any) -> Any:
            nonlocal last
            last = " ".join(str(arg) for arg in args[:2])
            return type(used).execute_command(used, *args, **options)

        with super().conn_or_acquire(client) as used:
            if client is None:
                used.execute_command = execute
            try:
                yield used
            except Exception as exc:
                self.failed_command = FailedCommand(exc, last)
                raise

    def _get_pool(self, *args: Any, **kwargs: Any) -> Any:
        return with_bounded_names(super()._get_pool(*args, **kwargs))

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        priority = self._get_message_priority(message, reverse=False)
        self._collect("LPUSH", self._q_for_pri(queue, priority), dumps(message))
        # kombu before 5.7 has no expiring queues.
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


@cache
def capturing_transport(transport: Any) -> type:
    """Return a subclass of a Redis transport (plain, TLS or Sentinel) whose channel collects commands."""
    channel = type("CapturingChannel", (_Channel, transport.Channel), {})
    return type("CapturingTransport", (transport,), {"Channel": channel})


class CapturingConnection(Connection):
    """Connection whose channels collect commands."""

    @classmethod
    def like(cls, connection: Connection, **transport_options: Any) -> CapturingConnection:
        """Return a connection with the settings of another one and further transport options."""
        settings = dict(connection._info(resolve=False))  # noqa: SLF001 -- what Connection.clone() uses
        settings["transport_options"] = {**(settings["transport_options"] or {}), **transport_options}
        return cls(**settings)

    def get_transport_cls(self) -> type:
        stock: Any = super().get_transport_cls()
        return capturing_transport(stock)


@contextmanager
def captured(channel: Any) -> Iterator[list[Command]]:
    """Collect the commands that are published through the channel."""
    commands: list[Command] = []
    channel.sink = commands
    try:
        yield commands
    finally:
        channel.sink = None
