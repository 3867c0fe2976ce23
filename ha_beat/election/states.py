"""Values of the election's state machine: timing, states, actions and outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ha_beat.reasons import ForbiddenReason, TermEnd, TermStart
from ha_beat.store.lease import Acquired, Expected, LeaseRecord, LeaseView, Lost, Refused, Renewed, Term


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations in seconds. ``margin`` shortens the trust window, because clocks run at different rates."""

    ttl: float = 10.0
    renew_interval: float = 2.5
    poll_interval: float = 0.1
    stall_timeout: float = 15.0

    @property
    def margin(self) -> float:
        return self.ttl / 10  # guard: trust-margin

    @property
    def retry_interval(self) -> float:
        """Return the pause after an attempt with an unknown outcome."""
        return min(self.renew_interval / 5, 0.5)

    @property
    def longest_backoff(self) -> float:
        """Return the longest pause between a standby's attempts while Redis does not answer or refuses."""
        return max(1.0, self.poll_interval)

    @property
    def preference_wait(self) -> float:
        """Return how long other replicas wait after an outage for an attempt of a preferable replica.

        Preferable is the holder of the lease, or a replica that remembers the lost state.
        """
        return self.longest_backoff + min(self.ttl / 4, 2.5)

    @property
    def presence_pause(self) -> float:
        """Return how long a leader has no presence after its presence connection broke repeatedly."""
        return 6 * self.ttl


# --- States


@dataclass(frozen=True, slots=True)
class Sighting:
    """Lease as a standby saw it last. ``since`` is when the standby first saw this state."""

    record: LeaseRecord
    since: float
    #: When its presence channel was first seen without a subscriber, on the server ``run_id``.
    absent_since: float | None = None
    run_id: str = ""
    #: When another server than that of the term was first seen.
    moved_since: float | None = None


@dataclass(frozen=True, slots=True)
class Standby:
    """Not leading. ``barred_until`` forbids campaigns after a release for cause."""

    next_poll: float = 0.0
    sighting: Sighting | None = None
    #: Presence channel that had a subscriber after the last outage and after the last loss of this replica's own
    #: presence, ``""`` for none. If it has no subscriber now, its holder is gone.
    counted: str = ""
    #: True from the start of this replica until it leads, or notices an outage, a loss of presence or an error.
    unbroken: bool = False
    #: When Redis was first seen without a lease.
    no_lease_since: float | None = None
    campaign: Campaign | None = None
    barred_until: float = 0.0
    seen_epoch: int = 0
    #: Nonces of campaigns with an unknown outcome, the newest last, and of the last term. A lease with one of them
    #: is free for this replica.
    nonces: tuple[str, ...] = ()
    #: Number of the last attempts in a row that Redis did not answer or refused.
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Leader:
    """Leading while the term is trusted. ``presence`` is the channel in the lease record."""

    term: Term
    since: float
    seq: int
    next_renewal: float
    presence: str
    presence_losses: int = 0
    no_presence_until: float = 0.0


State = Standby | Leader

# --- Actions


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until ``until``."""

    until: float


@dataclass(frozen=True, slots=True)
class Observe:
    """Read the lease."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """Try to acquire the lease in the state last seen. ``reason`` is why it is free."""

    expected: Expected | None
    reason: TermStart
    #: Before ``open_at``, only the replica with the id ``preferred`` may campaign. If there is no lease, only replicas
    #: that remember the cluster's positions may campaign before ``open_at``.
    preferred: str = ""
    open_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the lease. ``seq`` numbers the attempt; without ``presence`` the record names no channel."""

    term: Term
    seq: int
    presence: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Release the lease."""

    term: Term
    reason: TermEnd
    detail: str = ""
    preferred: str = ""


Action = Wait | Observe | Campaign | Renew | Release

# --- Outcomes


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer came. ``detail`` is the error's text."""

    detail: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """Answer to the renewal that was sent at ``sent_at``. ``outdated``: another renewal must follow immediately."""

    answer: Renewed | Lost | Literal["late"]
    sent_at: float
    outdated: bool = False


@dataclass(frozen=True, slots=True)
class Campaigned:
    """Answer to the campaign with this nonce."""

    answer: Acquired | Refused | Unknown
    nonce: str


@dataclass(frozen=True, slots=True)
class PresenceBroke:
    """The presence connection ended."""


@dataclass(frozen=True, slots=True)
class PresenceReady:
    """A new presence connection is open."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Work under the term with this nonce was refused, because the term is over."""

    nonce: str
    reason: TermEnd
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """This replica must not lead. ``detail`` is the error's text."""

    reason: ForbiddenReason
    detail: str


@dataclass(frozen=True, slots=True)
class Woken:
    """A wake message arrived: the lease was released, or requests wait."""


Outcome = LeaseView | Campaigned | Renewal | Unknown | PresenceBroke | PresenceReady | Fenced | Forbidden | Woken


@dataclass(frozen=True, slots=True)
class StepDown:
    """Requested step-down. ``preferred`` is the id of the replica to lead next, or ``""``."""

    reason: TermEnd
    detail: str = ""
    preferred: str = ""


@dataclass(frozen=True, slots=True)
class Fitness:
    """Fitness of this replica to lead, and a requested step-down.

    Only a fit replica campaigns. A stalled leader, and one that is to step down, releases the lease.
    """

    stalled: bool = False
    step_down: StepDown | None = None
    #: This replica's id.
    replica: str = ""
    #: True if it has what a leader needs, above all the schedule.
    ready: bool = True
    #: True if it knows the positions that the cluster has reached.
    remembers: bool = True
