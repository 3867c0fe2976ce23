"""Events of the election: terms, the lease and presence."""

from __future__ import annotations

from dataclasses import dataclass

from ha_beat.events.base import Event, Problem
from ha_beat.reasons import ForbiddenReason, LeaseAction, LeaseOutcome, TermEnd, TermStart


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
    """Redis answers again, ``after`` seconds."""

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
    """A campaign or a renewal finished. ``seconds`` is the round trip to Redis."""

    operation: LeaseAction
    outcome: LeaseOutcome
    seconds: float


@dataclass(frozen=True, slots=True)
class ElectionFailed(Problem):
    """The election raised an unexpected exception. This replica does not lead until the election works again."""

    detail: str
