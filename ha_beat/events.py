"""What happens, as data. The log and the metrics subscribe; neither is named where it happens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

logger = logging.getLogger("ha_beat")


@dataclass(frozen=True, slots=True)
class Event:
    """Root of all events."""


@dataclass(frozen=True, slots=True)
class TermStarted(Event):
    """This replica leads. ``previous`` held the lease before; ``why`` it was free; ``vacancy`` in seconds, if known."""

    epoch: int
    previous: str
    why: str


@dataclass(frozen=True, slots=True)
class TermEnded(Event):
    """This replica leads no more. ``led_for`` in seconds."""

    epoch: int
    why: str
    led_for: float


@dataclass(frozen=True, slots=True)
class LeaderSeen(Event):
    """A standby saw that another replica leads; once for each change."""

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class LeaseUnreachable(Event):
    """Redis can't be asked; once for each outage."""

    why: str
    leading: bool


@dataclass(frozen=True, slots=True)
class LeaseReachable(Event):
    """Redis answers again. ``after`` seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class PresenceLost(Event):
    """The connection by which Redis knows that this process lives has ended."""

    why: str


@dataclass(frozen=True, slots=True)
class LeadingForbidden(Event):
    """This replica may not lead, and waiting does not help."""

    why: str


@dataclass(frozen=True, slots=True)
class LeaseAttempted(Event):
    """A campaign (``won``, ``refused``, ``forbidden``) or a renewal (``renewed``, ``lost``, ``late``) was answered.

    Or was not: ``unknown``. ``seconds`` is the round trip to Redis.
    """

    action: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ElectionFailed(Event):
    """An unexpected exception in the election; this replica does not lead until it works again."""

    why: str


@dataclass(frozen=True, slots=True)
class ScheduleReady(Event):
    """The leader has read the ledger. ``overdue`` entries were due already; ``new`` were not in the ledger."""

    entries: int
    overdue: int
    new: int


@dataclass(frozen=True, slots=True)
class Enqueued(Event):
    """``lateness`` is in seconds after the due instant."""

    entry: str
    task: str
    task_id: str
    scheduled_at: datetime
    lateness: float


@dataclass(frozen=True, slots=True)
class OccurrenceSkipped(Event):
    """Due instants that get no message, from ``first`` up to ``until``; ``count`` -1 for too many to count."""

    entry: str
    first: datetime
    until: datetime
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class EntryFailed(Event):
    """One entry can't be scheduled or built into a message; the others go on."""

    entry: str
    why: str
    exc: BaseException | None = None


@dataclass(frozen=True, slots=True)
class BatchDispatched(Event):
    """One trip of the dispatch. ``seconds`` it took; ``already_mine`` answers mean that a reply had been lost."""

    size: int
    seconds: float
    already_mine: int


@dataclass(frozen=True, slots=True)
class DispatchFenced(Event):
    """Redis refused a batch, since the term is not the current one."""

    epoch: int
    size: int
    why: str


@dataclass(frozen=True, slots=True)
class DispatchFailed(Event):
    """A batch could not be handed over; it is tried again while the term is trusted."""

    size: int
    why: str


Subscriber = Callable[[Event], None]


class Events:
    """Hands each event to every subscriber. A subscriber that raises is logged and hurts nobody."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                logger.exception("A subscriber of %s failed", type(event).__name__)
