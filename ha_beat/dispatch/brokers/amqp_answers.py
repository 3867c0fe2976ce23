"""Answers of an AMQP broker to the messages of one channel: the message that each belongs to, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ha_beat.dispatch.brokers.adapter import Delivery, Sent
from ha_beat.dispatch.messages.deferred import Arguments
from ha_beat.exception_text import exception_line
from ha_beat.headers import HEADER
from ha_beat.reasons import PublishOutcome

#: Most routes that are remembered.
_MOST_ROUTES = 10_000


@dataclass(slots=True)
class _Message:
    """Message without an answer. ``returned`` is why the broker has returned it."""

    delivery: Delivery
    publish_id: str
    route: tuple[str, str]
    returned: str = ""


class UnansweredMessages:
    """Messages of one channel that have no answer yet, by number from 1. Most methods handle events of the channel."""

    def __init__(self, answer: Callable[[Delivery, Sent], None]) -> None:
        self._answer = answer
        self._number = 0
        self._messages: dict[int, _Message] = {}
        #: Routes (exchange and routing key) on which the broker has accepted a message.
        self.known_routes: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._messages)

    def begin(self, delivery: Delivery, arguments: Arguments) -> None:
        self._number += 1
        self._messages[self._number] = _Message(delivery, _publish_id(arguments["headers"]), route_of(arguments))

    def pop_last(self) -> Delivery:
        """Remove and return the last message, because nothing of it was written."""
        self._number -= 1
        return self._messages.pop(self._number + 1).delivery

    def acked(self, number: int, multiple: bool) -> None:
        for one in self._take(number, multiple):
            if one.returned:
                self._answer(one.delivery, Sent(PublishOutcome.REFUSED, one.returned))
                continue
            if len(self.known_routes) >= _MOST_ROUTES:
                # Each message may have another routing key.
                self.known_routes.clear()
            self.known_routes.add(one.route)
            self._answer(one.delivery, Sent(PublishOutcome.ACCEPTED))

    def nacked(self, number: int, multiple: bool) -> None:
        for one in self._take(number, multiple):
            # Another queue may have taken the message.
            self._answer(one.delivery, Sent(PublishOutcome.UNKNOWN, "the broker did not accept it"))

    def returned(self, exc: Exception, exchange: str, routing_key: str, message: Any) -> None:
        """Note that no queue takes a message. The broker acknowledges the message later, perhaps after others."""
        publish_id = _publish_id(message.headers or {})
        for one in self._messages.values():
            if one.publish_id == publish_id:  # guard: amqp-return-own
                one.returned = f"no queue takes it (exchange {exchange!r}, routing key {routing_key!r}): {exc}"

    def failed(self, exc: Exception, *, of_channel: bool) -> None:
        """Give every message the outcome that follows from an error of the channel or the connection."""
        messages, self._messages = self._messages, {}
        # If only one message is unanswered, that message is at fault.
        refused = of_channel and len(messages) == 1  # guard: amqp-fault-unknown
        outcome = PublishOutcome.REFUSED if refused else PublishOutcome.UNKNOWN
        for one in messages.values():
            self._answer(one.delivery, Sent(outcome, exception_line(exc), broken=not of_channel))

    def _take(self, number: int, multiple: bool) -> list[_Message]:
        """Remove and return the messages that an answer with this number concerns."""
        found = [
            each
            for each in self._messages
            if each == number or (multiple and each < number)  # guard: amqp-answer-own
        ]
        return [self._messages.pop(each) for each in found]


def _publish_id(headers: Mapping[str, Any]) -> str:
    """Return the id of a publish; empty for a message without this package's header."""
    header = headers.get(HEADER)
    return str(header.get("publish", "")) if isinstance(header, Mapping) else ""


def route_of(arguments: Arguments) -> tuple[str, str]:
    return str(arguments["exchange"]), str(arguments["routing_key"])
