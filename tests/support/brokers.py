"""Brokers without a server, for tests of the dispatch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from ha_beat.dispatch.brokers.adapter import Delivery, Sent
from ha_beat.dispatch.messages.build import Sender
from ha_beat.dispatch.messages.recipe import Recipes
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome


@dataclass
class FixedLink:
    """Link whose client is given."""

    fixed: Any

    def client(self) -> Any:
        return self.fixed


class NoRecipes(Recipes):
    """Reader that finds no message to build ahead."""

    def __init__(self) -> None:
        super().__init__(Sender(Celery("none", set_as_current=False)))

    def refresh(self) -> None:
        pass

    def of(self, _: object) -> None:
        return None


@dataclass
class FakePublisher:
    """Publisher that returns the prepared outcomes, one for each message, and then accepts all others."""

    outcomes: list[Sent | Exception] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    #: The reason if the broker is unreachable; checked before an occurrence is claimed.
    away: str = ""
    #: Called with the number of the send, from 1.
    before_send: Callable[[int], object] = lambda _: None
    sends: int = 0
    #: True if :meth:`wait_for_answers` or :meth:`answer` sets the outcomes, not :meth:`send`.
    answers_late: bool = False
    unanswered: list[tuple[Delivery, Sent]] = field(default_factory=list)
    before_wait: Callable[[], object] = lambda: None
    #: Called when a send first waits for the answers to other messages.
    on_wait_if_alone: Callable[[], object] = lambda: None

    recipes = NoRecipes()

    def prepare(self, *_: Any) -> Any:
        raise NotImplementedError

    def ready(self) -> None:
        if self.away:
            raise StoreUnavailable(self.away, acted=False)

    def send(self, message: Any, delivery: Delivery, **_: bool) -> None:
        self.sends += 1
        self.before_send(self.sends)
        sent = self.outcomes.pop(0) if self.outcomes else Sent(PublishOutcome.ACCEPTED)
        if isinstance(sent, Exception):
            raise sent
        if sent.outcome == PublishOutcome.ACCEPTED:
            self.accepted.append(message.commands[0][-1])
        self.unanswered.append((delivery, sent))
        if not self.answers_late:
            self.answer()

    def wait_if_alone(self, *_: Any) -> bool:
        self.on_wait_if_alone()
        return False

    def answer(self) -> None:
        """Set the outcomes of the messages that were sent."""
        for delivery, sent in self.unanswered:
            delivery.sent = sent
        self.unanswered = []

    def wait_for_answers(self, _: Callable[[], None]) -> None:
        self.before_wait()
        self.answer()
