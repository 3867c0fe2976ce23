"""Events of a replica, as frozen data.

The code in which something happens emits an event. The log, the metrics, the status and the signals subscribe to it.
``reason`` is a code of :mod:`ha_beat.reasons`; ``detail`` is free text, mostly that of an exception.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from ha_beat.exception_text import exception_line
from ha_beat.reasons import (
    DispatchPath,
    Duty,
    DutyFault,
    EntryFault,
    ForbiddenReason,
    Invariant,
    LeaseAction,
    LeaseOutcome,
    LossKind,
    MessageKind,
    PathReason,
    RedisRisk,
    ReplyCode,
    RequestKind,
    SkipReason,
    TermEnd,
    TermStart,
    UncertainReason,
)

logger = logging.getLogger("ha_beat")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. ``action`` is the name in log records: the class's name in snake case."""

    action: ClassVar[str] = ""
    problem: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.action = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


@dataclass(frozen=True, slots=True)
class Problem(Event):
    """Base of the events that are logged as a warning or an error, counted by action, and shown in the status."""

    problem: ClassVar[bool] = True


Subscriber = Callable[[Event], None]


class Events:
    """List of subscribers. An exception of one affects neither the others nor the emitter."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            deliver(event, subscriber)


def deliver(event: Event, subscriber: Subscriber) -> None:
    """Call a subscriber. Its exception is logged."""
    try:
        subscriber(event)
    except Exception:
        extra = {"action": "subscriber_failed", "event": event.action}
        logger.exception("A subscriber of %s failed", event.action, extra=extra)


# --- Election: terms, the lease and presence


@dataclass(frozen=True, slots=True)
class TermStarted(Event):
    """This replica became leader. ``previous`` is the last holder of the lease, empty if there was none."""

    epoch: int
    previous: str
    reason: TermStart


@dataclass(frozen=True, slots=True)
class TermEnded(Problem):
    """This replica is no longer leader. ``led_for`` is in seconds; ``detail`` names the requester or the error."""

    epoch: int
    reason: TermEnd
    led_for: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LeaderSeen(Event):
    """A standby saw a new leader. Emitted once per leader and epoch."""

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class LeaseUnreachable(Problem):
    """Redis does not answer or refuses commands on the lease. Emitted once per distinct error of an outage."""

    detail: str
    leading: bool


@dataclass(frozen=True, slots=True)
class LeaseReachable(Event):
    """Redis answers again, after an outage of ``after`` seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class PresenceLost(Problem):
    """The leader's presence connection ended."""

    detail: str


@dataclass(frozen=True, slots=True)
class LeadingForbidden(Problem):
    """This replica must not lead until its configuration or the cluster changes."""

    reason: ForbiddenReason
    detail: str


@dataclass(frozen=True, slots=True)
class LeaseAttempted(Event):
    """A campaign or a renewal finished after ``seconds``."""

    operation: LeaseAction
    outcome: LeaseOutcome
    seconds: float


@dataclass(frozen=True, slots=True)
class ElectionFailed(Problem):
    """The election raised an unexpected exception. This replica does not lead until the election works again."""

    detail: str


# --- Schedule and dispatch


@dataclass(frozen=True, slots=True)
class ScheduleReady(Event):
    """The leader has loaded the schedule. ``overdue`` entries were already due; ``new`` ones had no ledger row."""

    entries: int
    overdue: int
    new: int


@dataclass(frozen=True, slots=True)
class Enqueued(Event):
    """An occurrence was enqueued ``lateness`` seconds after it was due."""

    entry: str
    task: str
    task_id: str
    scheduled_at: datetime
    lateness: float


@dataclass(frozen=True, slots=True)
class OccurrenceSkipped(Problem):
    """Occurrences in ``[first, until)`` were skipped. ``count`` is -1 if there were too many to count."""

    entry: str
    first: datetime
    until: datetime
    count: int
    reason: SkipReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OccurrenceUncertain(Problem):
    """The delivery of a message is unknown. ``detail`` is the broker's answer or the client's exception."""

    entry: str
    scheduled_at: datetime | None
    task_id: str
    reason: UncertainReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EntryFailed(Problem):
    """One entry cannot be scheduled or made into a message. The other entries are not affected."""

    entry: str
    reason: EntryFault
    detail: str = ""
    exc: BaseException | None = None

    @classmethod
    def raised(cls, entry: str, reason: EntryFault, exc: BaseException) -> EntryFailed:
        """Return the event for an exception, with its type and text as the detail."""
        return cls(entry, reason, exception_line(exc), exc)


@dataclass(frozen=True, slots=True)
class StateLost(Problem):
    """Redis lost data. Occurrences that may have been enqueued are enqueued again if ``catch_up``, and else skipped."""

    reason: LossKind
    catch_up: bool


@dataclass(frozen=True, slots=True)
class DispatchHeld(Problem):
    """Nothing is dispatched for ``seconds``, because an earlier leader may still use the previous Redis server."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PathChosen(Event):
    """The dispatch path was chosen or changed."""

    path: DispatchPath
    reason: PathReason


@dataclass(frozen=True, slots=True)
class BatchDispatched(Event):
    """A batch was dispatched. An earlier attempt whose reply was lost had done ``already_mine`` of its operations."""

    size: int
    seconds: float
    already_mine: int


@dataclass(frozen=True, slots=True)
class DispatchFenced(Problem):
    """A batch was refused because the term is over. ``reason`` is why it ended."""

    epoch: int
    size: int
    reason: TermEnd
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DispatchFailed(Problem):
    """A batch failed and is retried while the term is trusted. ``tries`` is the number of failures in a row."""

    size: int
    detail: str
    tries: int = 1


@dataclass(frozen=True, slots=True)
class LedgerReadFailed(Problem):
    """A new leader cannot read the ledger and retries. ``tries`` is the number of failures in a row."""

    detail: str
    tries: int = 1


# --- Requests to the leader


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The cluster is paused. ``found`` is True if the pause was already in force when this leader's term began."""

    since: datetime
    by: str
    reason: str
    found: bool


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The pause of the cluster ended after ``after`` seconds."""

    by: str
    after: float


@dataclass(frozen=True, slots=True)
class RequestAnswered(Event):
    """The leader answered a request of ``by``."""

    kind: RequestKind
    by: str
    code: ReplyCode
    #: Depends on the code.
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EnqueuedOnRequest(Event):
    """A message was enqueued on request. The entry's position did not change."""

    entry: str
    task: str
    task_id: str
    scheduled_at: datetime
    kind: MessageKind
    by: str


# --- Clocks, servers, records and threads


@dataclass(frozen=True, slots=True)
class ClockJumped(Problem):
    """The machine's wall clock moved by ``seconds`` more than time passed: it was set, or it drifts.

    ``followed`` is True if the scheduling time moved with it.
    """

    seconds: float
    followed: bool


@dataclass(frozen=True, slots=True)
class ClockOffset(Problem):
    """The scheduling time is ``seconds`` ahead of Redis' clock."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ServerMayForget(Problem):
    """Redis' configuration allows it to lose the cluster's records. Emitted once per risk."""

    reason: RedisRisk
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleRestored(Problem):
    """The schedule's store had lost its data. ``entries`` of the ``known`` entries were written to it again."""

    entries: int
    known: int


@dataclass(frozen=True, slots=True)
class OtherSchedulerSeen(Problem):
    """The lock of redbeat's own scheduler is held, and expires in ``seconds`` (0: never). ``runs``: it was renewed."""

    runs: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class BrokersIgnored(Problem):
    """The broker is a list of Redis servers. Only the first is used, because it also holds the lease."""

    used: str
    ignored: str


@dataclass(frozen=True, slots=True)
class InvariantBroken(Problem):
    """An invariant does not hold for ``subject``. Emitted once until it holds again."""

    rule: Invariant
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class RecordUnreadable(Problem):
    """A record in Redis cannot be read and is ignored. Emitted once per record."""

    record: str


@dataclass(frozen=True, slots=True)
class DutyLate(Problem):
    """A duty was last done ``seconds`` ago. Emitted when it becomes late, and then at growing intervals."""

    duty: Duty
    reason: DutyFault
    seconds: float
    detail: str = ""
    exc: BaseException | None = None


@dataclass(frozen=True, slots=True)
class DutyResumed(Event):
    """A late duty was done again after ``after`` seconds."""

    duty: Duty
    after: float


@dataclass(frozen=True, slots=True)
class EventsDropped(Problem):
    """The consumer of events that does ``duty`` was blocked. ``count`` events were dropped since the last report."""

    duty: Duty
    count: int


@dataclass(frozen=True, slots=True)
class TurnFailed(Problem):
    """A turn of the main loop raised and is repeated each second. Emitted once per distinct error."""

    detail: str
    exc: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ThreadRestarted(Problem):
    """A thread of this replica ended unexpectedly and is restarted. ``detail`` is why it ended."""

    thread_name: str
    detail: str
