"""Messages in the form of publishes through kombu that are complete but not carried out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kombu import Producer

from ha_beat.dispatch.messages.build import OccurrenceProducer, is_timed
from ha_beat.headers import HEADER
from ha_beat.store.lease import new_token

#: Arguments of a publish by kombu's producer.
Arguments = dict[str, Any]


@dataclass(slots=True)
class DeferredPublish:
    """One publish through kombu that is complete but not carried out."""

    arguments: Arguments

    def stamp(self) -> None:
        """Give this publish an id, with which a worker distinguishes a second publish from a redelivery."""
        header = self.arguments["headers"].get(HEADER)
        if header is not None:
            header["publish"] = new_token()

    def restamped(self, header: Mapping[str, Any]) -> DeferredPublish:
        headers = self.arguments["headers"]
        if HEADER not in headers:
            return self
        return DeferredPublish({**self.arguments, "headers": {**headers, HEADER: {**headers[HEADER], **header}}})


@dataclass(frozen=True, slots=True)
class DeferredMessage:
    """Message that consists of one publish, or of several if the entry's task publishes more than once."""

    publishes: tuple[DeferredPublish, ...]

    @property
    def size(self) -> int:
        """Return 0: no script sends the message."""
        return 0

    @property
    def timed(self) -> bool:
        return any(is_timed(one.arguments["headers"]) for one in self.publishes)

    def restamped(self, header: Mapping[str, Any]) -> DeferredMessage:
        return DeferredMessage(tuple(one.restamped(header) for one in self.publishes))


class DeferringProducer(OccurrenceProducer):
    """Producer that builds messages and keeps them in :attr:`deferred`."""

    deferred: list[DeferredPublish]
    _signature = inspect.signature(Producer._publish)  # noqa: SLF001 -- the seam, the same since kombu 5.3

    def _publish(self, *args: Any, **kwargs: Any) -> None:
        arguments = dict(self._signature.bind(self, *args, **kwargs).arguments)
        del arguments["self"]
        self.deferred.append(DeferredPublish(arguments))

    def declares(self, message: DeferredPublish) -> bool:
        """True if a queue or an exchange of the message is not declared yet."""
        channel: Any = self.channel
        declared = channel.connection.client.declared_entities
        return any(hash(entity) not in declared for entity in message.arguments.get("declare") or ())

    def declare_for(self, message: DeferredPublish) -> None:
        """Declare the queues and exchanges of a message, each once per connection."""
        for entity in message.arguments.get("declare") or ():
            self.maybe_declare(entity)

    def carry_out(self, arguments: Arguments) -> None:
        super()._publish(**{**arguments, "declare": ()})
