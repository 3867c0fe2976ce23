"""Events of the schedule and of dispatch: what was enqueued, skipped, uncertain or failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ha_beat.events.base import Event, Problem
from ha_beat.exception_text import exception_line
from ha_beat.reasons import DispatchPath, EntryFault, LossKind, PathReason, SkipReason, TermEnd, UncertainReason


@dataclass(frozen=True, slots=True)
class ScheduleReady(Event):
    """The leader has read the ledger. ``overdue`` entries were already due; ``new`` ones were not in the ledger."""

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
    """Redis lost data. Occurrences that may have been enqueued are enqueued again if ``catch_up``, else skipped."""

    reason: LossKind
    catch_up: bool


@dataclass(frozen=True, slots=True)
class DispatchHeld(Problem):
    """Nothing is dispatched for ``seconds``, because the previous leader may still use the previous Redis server."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PathChosen(Event):
    """The dispatch path was chosen or changed."""

    path: DispatchPath
    reason: PathReason


@dataclass(frozen=True, slots=True)
class BatchDispatched(Event):
    """A batch was dispatched. ``already_mine`` operations had been done by an attempt whose reply was lost."""

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
