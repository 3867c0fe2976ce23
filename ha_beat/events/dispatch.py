"""Events of a replica, as frozen data.

The code in which something happens emits an event and knows neither the log, the metrics nor the signals, which
subscribe. ``reason`` is a code of :mod:`ha_beat.reasons`; ``detail`` is free text, mostly of a foreign exception.
"""

from __future__ import annotations

import logging
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
    """Base of all events. ``action`` is the event's stable name in log records.

    A ``problem`` is logged as a warning or an error, counted by its action, and shown in the status.
    """

    action: ClassVar[str] = ""
    problem: ClassVar[bool] = False


# --- Election


@dataclass(frozen=True, slots=True)
class TermStarted(Event):
    """This replica became leader. ``previous`` is the last holder of the lease, empty if there was none."""

    action: ClassVar[str] = "term_started"

    epoch: int
    previous: str
    reason: TermStart


@dataclass(frozen=True, slots=True)
class TermEnded(Event):
    """This replica is no longer leader. ``led_for`` is in seconds; ``detail`` names the requester or the error."""

    action: ClassVar[str] = "term_ended"
    problem: ClassVar[bool] = True

    epoch: int
    reason: TermEnd
    led_for: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LeaderSeen(Event):
    """A standby saw a new leader. Emitted once per leader and epoch."""

    action: ClassVar[str] = "leader_seen"

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class LeaseUnreachable(Event):
    """Redis does not answer or refuses commands on the lease. Emitted once per distinct error of an outage."""

    action: ClassVar[str] = "lease_unreachable"
    problem: ClassVar[bool] = True

    detail: str
    leading: bool


@dataclass(frozen=True, slots=True)
class LeaseReachable(Event):
    """Redis answers again, ``after`` seconds."""

    action: ClassVar[str] = "lease_reachable"

    after: float


@dataclass(frozen=True, slots=True)
class PresenceLost(Event):
    """The leader's presence connection ended."""

    action: ClassVar[str] = "presence_lost"
    problem: ClassVar[bool] = True

    detail: str


@dataclass(frozen=True, slots=True)
class LeadingForbidden(Event):
    """This replica must not lead until its configuration or the cluster changes."""

    action: ClassVar[str] = "leading_forbidden"
    problem: ClassVar[bool] = True

    reason: ForbiddenReason
    detail: str


@dataclass(frozen=True, slots=True)
class LeaseAttempted(Event):
    """A campaign or a renewal finished. ``seconds`` is the round trip to Redis."""

    action: ClassVar[str] = "lease_attempted"

    operation: LeaseAction
    outcome: LeaseOutcome
    seconds: float


@dataclass(frozen=True, slots=True)
class ElectionFailed(Event):
    """The election raised an unexpected exception. This replica does not lead until the election works again."""

    action: ClassVar[str] = "election_failed"
    problem: ClassVar[bool] = True

    detail: str


# --- Dispatch


@dataclass(frozen=True, slots=True)
class ScheduleReady(Event):
    """The leader has read the ledger. ``overdue`` entries were already due; ``new`` ones were not in the ledger."""

    action: ClassVar[str] = "schedule_ready"

    entries: int
    overdue: int
    new: int


@dataclass(frozen=True, slots=True)
class Enqueued(Event):
    """An occurrence was enqueued ``lateness`` seconds after it was due."""

    action: ClassVar[str] = "enqueued"

    entry: str
    task: str
    task_id: str
    scheduled_at: datetime
    lateness: float


@dataclass(frozen=True, slots=True)
class OccurrenceSkipped(Event):
    """Occurrences in ``[first, until)`` were skipped. ``count`` is -1 if there were too many to count."""

    action: ClassVar[str] = "occurrence_skipped"
    problem: ClassVar[bool] = True

    entry: str
    first: datetime
    until: datetime
    count: int
    reason: SkipReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OccurrenceUncertain(Event):
    """The delivery of a message is unknown. ``detail`` is the broker's answer or the client's exception."""

    action: ClassVar[str] = "occurrence_uncertain"
    problem: ClassVar[bool] = True

    entry: str
    scheduled_at: datetime | None
    task_id: str
    reason: UncertainReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EntryFailed(Event):
    """One entry cannot be scheduled or made into a message. The other entries are not affected."""

    action: ClassVar[str] = "entry_failed"
    problem: ClassVar[bool] = True

    entry: str
    reason: EntryFault
    detail: str = ""
    exc: BaseException | None = None

    @classmethod
    def raised(cls, entry: str, reason: EntryFault, exc: BaseException) -> EntryFailed:
        """Return the event for an exception, with its type and text as the detail."""
        return cls(entry, reason, exception_line(exc), exc)


@dataclass(frozen=True, slots=True)
class StateLost(Event):
    """Redis lost data. Occurrences that may have been enqueued are enqueued again if ``catch_up``, else skipped."""

    action: ClassVar[str] = "state_lost"
    problem: ClassVar[bool] = True

    reason: LossKind
    catch_up: bool


@dataclass(frozen=True, slots=True)
class DispatchHeld(Event):
    """Nothing is dispatched for ``seconds``, because the previous leader may still use the previous Redis server."""

    action: ClassVar[str] = "dispatch_held"
    problem: ClassVar[bool] = True

    seconds: float


@dataclass(frozen=True, slots=True)
class PathChosen(Event):
    """The dispatch path was chosen or changed."""

    action: ClassVar[str] = "path_chosen"

    path: DispatchPath
    reason: PathReason


@dataclass(frozen=True, slots=True)
class BatchDispatched(Event):
    """A batch was dispatched. ``already_mine`` operations had been done by an attempt whose reply was lost."""

    action: ClassVar[str] = "batch_dispatched"

    size: int
    seconds: float
    already_mine: int


@dataclass(frozen=True, slots=True)
class DispatchFenced(Event):
    """A batch was refused because the term is over. ``reason`` is why it ended."""

    action: ClassVar[str] = "dispatch_fenced"
    problem: ClassVar[bool] = True

    epoch: int
    size: int
    reason: TermEnd
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DispatchFailed(Event):
    """A batch failed and is retried while the term is trusted. ``tries`` is the number of failures in a row."""

    action: ClassVar[str] = "dispatch_failed"
    problem: ClassVar[bool] = True

    size: int
    detail: str
    tries: int = 1


@dataclass(frozen=True, slots=True)
class LedgerReadFailed(Event):
    """A new leader cannot read the ledger and retries. ``tries`` is the number of failures in a row."""

    action: ClassVar[str] = "ledger_read_failed"
    problem: ClassVar[bool] = True

    detail: str
    tries: int = 1


# --- Clocks and Redis


@dataclass(frozen=True, slots=True)
class ClockJumped(Event):
    """The machine's wall clock moved by ``seconds`` more than the time that passed: it stepped or drifts.

    ``followed`` is True if the scheduling time moved with it.
    """

    action: ClassVar[str] = "clock_jumped"
    problem: ClassVar[bool] = True

    seconds: float
    followed: bool


@dataclass(frozen=True, slots=True)
class ClockOffset(Event):
    """The scheduling time is ``seconds`` ahead of Redis' clock."""

    action: ClassVar[str] = "clock_offset"
    problem: ClassVar[bool] = True

    seconds: float


@dataclass(frozen=True, slots=True)
class ServerMayForget(Event):
    """Redis' configuration allows it to lose the cluster's records. Emitted once per risk."""

    action: ClassVar[str] = "server_may_forget"
    problem: ClassVar[bool] = True

    reason: RedisRisk
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleRestored(Event):
    """The schedule's own store had lost its data. ``entries`` of the ``known`` ones were written to it again."""

    action: ClassVar[str] = "schedule_restored"
    problem: ClassVar[bool] = True

    entries: int
    known: int


@dataclass(frozen=True, slots=True)
class OtherSchedulerSeen(Event):
    """The store's own scheduler holds its lock, which expires in ``seconds`` (0 for never). ``runs``: it renewed it."""

    action: ClassVar[str] = "other_scheduler_seen"
    problem: ClassVar[bool] = True

    runs: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class BrokersIgnored(Event):
    """The broker is a list of Redis servers, and the first also holds the lease, which can't move to another."""

    action: ClassVar[str] = "brokers_ignored"
    problem: ClassVar[bool] = True

    used: str
    ignored: str


# --- Requests


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The cluster is paused. ``found`` is True if the pause was already in force when this leader's term began."""

    action: ClassVar[str] = "paused"

    since: datetime
    by: str
    reason: str
    found: bool


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The cluster was resumed ``after`` seconds."""

    action: ClassVar[str] = "resumed"

    by: str
    after: float


@dataclass(frozen=True, slots=True)
class RequestAnswered(Event):
    """The leader answered a request of ``by``."""

    action: ClassVar[str] = "request_answered"

    kind: RequestKind
    by: str
    code: ReplyCode
    #: Depends on the code.
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EnqueuedOnRequest(Event):
    """A message was enqueued on request. The entry's position did not change."""

    action: ClassVar[str] = "enqueued_on_request"

    entry: str
    task: str
    task_id: str
    scheduled_at: datetime
    kind: MessageKind
    by: str


# --- Checks


@dataclass(frozen=True, slots=True)
class InvariantBroken(Event):
    """An invariant does not hold for ``subject``. Emitted once until it holds again."""

    action: ClassVar[str] = "invariant_broken"
    problem: ClassVar[bool] = True

    rule: Invariant
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class RecordUnreadable(Event):
    """A record in Redis cannot be read and is ignored. Emitted once per record."""

    action: ClassVar[str] = "record_unreadable"
    problem: ClassVar[bool] = True

    record: str


# --- Duties


@dataclass(frozen=True, slots=True)
class DutyLate(Event):
    """A duty was last done ``seconds`` ago. Emitted at once, and at growing intervals until it is done again."""

    action: ClassVar[str] = "duty_late"
    problem: ClassVar[bool] = True

    duty: Duty
    reason: DutyFault
    seconds: float
    detail: str = ""
    exc: BaseException | None = None


@dataclass(frozen=True, slots=True)
class DutyResumed(Event):
    """A late duty was done again, ``after`` seconds."""

    action: ClassVar[str] = "duty_resumed"

    duty: Duty
    after: float


@dataclass(frozen=True, slots=True)
class EventsDropped(Event):
    """The consumer of events that does ``duty`` was blocked. ``count`` events were dropped since the last report."""

    action: ClassVar[str] = "events_dropped"
    problem: ClassVar[bool] = True

    duty: Duty
    count: int


@dataclass(frozen=True, slots=True)
class TurnFailed(Event):
    """A turn of the main loop raised and is repeated each second. Emitted once per distinct error."""

    action: ClassVar[str] = "turn_failed"
    problem: ClassVar[bool] = True

    detail: str
    exc: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ThreadRestarted(Event):
    """A thread of this replica ended although it must not, and is started again. ``detail`` is why it ended."""

    action: ClassVar[str] = "thread_restarted"
    problem: ClassVar[bool] = True

    thread_name: str
    detail: str


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
