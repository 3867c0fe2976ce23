"""Base classes of events, and the list of their subscribers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

logger = logging.getLogger("ha_beat")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. ``action`` is the stable name in log records: the class's name in snake case."""

    action: ClassVar[str] = ""
    problem: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.action = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


@dataclass(frozen=True, slots=True)
class Problem(Event):
    """Base of the events that are logged as warnings or errors, counted by action, and shown in the status."""

    problem: ClassVar[bool] = True


Subscriber = Callable[[Event], None]


class Events:
    """List of subscribers. An exception in one is logged and does not reach the others or the emitter."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                extra = {"action": "subscriber_failed", "event": event.action}
                logger.exception("A subscriber of %s failed", event.action, extra=extra)
