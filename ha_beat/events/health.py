"""Events of clocks, servers, records and threads, mostly problems."""

from __future__ import annotations

from dataclasses import dataclass

from ha_beat.events.base import Event, Problem
from ha_beat.reasons import Duty, DutyFault, Invariant, RedisRisk


@dataclass(frozen=True, slots=True)
class ClockJumped(Problem):
    """The machine's wall clock moved by ``seconds`` more than the time that passed: it stepped or drifts.

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
    """The schedule's own store had lost its data. ``entries`` of the ``known`` ones were written to it again."""

    entries: int
    known: int


@dataclass(frozen=True, slots=True)
class OtherSchedulerSeen(Problem):
    """The store's own scheduler holds its lock, which expires in ``seconds`` (0 for never). ``runs``: it renewed it."""

    runs: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class BrokersIgnored(Problem):
    """The broker is a list of Redis servers, and the first also holds the lease, which can't move to another."""

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
    """A duty was last done ``seconds`` ago. Emitted at once, and at growing intervals until it is done again."""

    duty: Duty
    reason: DutyFault
    seconds: float
    detail: str = ""
    exc: BaseException | None = None


@dataclass(frozen=True, slots=True)
class DutyResumed(Event):
    """A late duty was done again, ``after`` seconds."""

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
    """A thread of this replica ended although it must not, and is started again. ``detail`` is why it ended."""

    thread_name: str
    detail: str
