"""What happens, as data. The log and the metrics subscribe; neither is named where it happens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ha_beat.reasons import DispatchPath, LeaseAction, LeaseOutcome, PathReason, TermEnd, TermStart, UncertainReason

logger = logging.getLogger("ha_beat")


@dataclass(frozen=True, slots=True)
class Event:
    """Root of all events."""


@dataclass(frozen=True, slots=True)
class TermStarted(Event):
    """This replica leads. ``previous`` held the lease before; ``reason`` is why it was free."""

    epoch: int
    previous: str
    reason: TermStart


@dataclass(frozen=True, slots=True)
class TermEnded(Event):
    """This replica no longer leads. ``led_for`` is in seconds; ``detail`` names who asked or which error."""

    epoch: int
    reason: TermEnd
    led_for: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LeaderSeen(Event):
    """A standby saw that another replica leads; once for each change."""

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class LeaseUnreachable(Event):
    """Redis can't be asked, or refuses; once for each reason in an outage."""

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
class PresenceUnavailable(Event):
    """No such connection can be had: this replica's death would be noticed only by its lease. Once for each reason."""

    why: str


@dataclass(frozen=True, slots=True)
class FollowFailed(Event):
    """This standby can't follow what the leader records. Once for each reason."""

    why: str


@dataclass(frozen=True, slots=True)
class LeadingForbidden(Event):
    """This replica may not lead, and waiting does not help."""

    why: str


@dataclass(frozen=True, slots=True)
class StoreUnmarked(Event):
    """The broker's Redis can't be told which store holds the lease, so that a second store would not be noticed."""

    why: str


@dataclass(frozen=True, slots=True)
class LeaseAttempted(Event):
    """A campaign or a renewal ended. ``seconds`` is the round trip to Redis."""

    action: LeaseAction
    outcome: LeaseOutcome
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
class OccurrenceUncertain(Event):
    """The outcome of a publish is unknown. ``detail`` is the broker's answer or the client's exception."""

    entry: str
    scheduled_at: datetime | None
    task_id: str
    reason: UncertainReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StateLost(Event):
    """Redis lost state. Under ``catch_up`` what may have been enqueued is enqueued again, else it is skipped."""

    why: str
    catch_up: bool


@dataclass(frozen=True, slots=True)
class DispatchHeld(Event):
    """Nothing is dispatched for so many seconds: on the server before, the last leader may still be at it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PathChosen(Event):
    """The dispatch path of this replica was chosen, or changed."""

    path: DispatchPath
    reason: PathReason


@dataclass(frozen=True, slots=True)
class ClockJumped(Event):
    """The machine's wall clock stepped by so many seconds; whether scheduling followed it."""

    seconds: float
    followed: bool


@dataclass(frozen=True, slots=True)
class ClockOffset(Event):
    """Scheduling time and Redis' clock differ by so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ServerMayForget(Event):
    """Redis is set up so that it may lose the cluster's records; once for each way."""

    why: str


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
    """A batch was refused because the term is over. ``reason`` is why it ended."""

    epoch: int
    size: int
    reason: TermEnd
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DispatchFailed(Event):
    """A batch could not be handed over; it is tried again while the term is trusted. ``tries`` have failed in a row."""

    size: int
    why: str
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The cluster enqueues nothing until it is resumed. ``found``: this leader found it so when its term began."""

    since: datetime
    by: str
    reason: str
    found: bool


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The cluster is paused no more. ``after`` seconds."""

    by: str
    after: float


@dataclass(frozen=True, slots=True)
class RequestAnswered(Event):
    """The leader has answered a request of ``by``; ``action`` is the request's."""

    action: str
    by: str
    ok: bool
    line: str


@dataclass(frozen=True, slots=True)
class EnqueuedOnRequest(Event):
    """A message enqueued because somebody asked. ``kind`` is ``manual`` or ``backfill``; no schedule was moved."""

    entry: str
    task: str
    task_id: str
    scheduled_at: datetime
    kind: str
    by: str


@dataclass(frozen=True, slots=True)
class InvariantBroken(Event):
    """Something that can't be, is. ``kind`` names the rule, ``subject`` what broke it; once until it is mended."""

    kind: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class ScheduleStoreFailed(Event):
    """The schedule's own store can't be used; once for each outage. ``known``: there is a schedule to go by."""

    why: str
    known: bool


@dataclass(frozen=True, slots=True)
class ScheduleStoreBack(Event):
    """The schedule's own store answers again. ``after`` seconds."""

    after: float


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
