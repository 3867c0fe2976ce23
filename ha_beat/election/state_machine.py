"""State machine of the election. It decides without I/O.

::

            lease free, stale or its leader gone           renewed
    STANDBY ------------------------------> LEADER --------------------+
       ^    Campaign -> Acquired              |  ^                     |
       |                                      |  +---------------------+
       +--------------------------------------+
         lost; fenced; trust expired; stepped down; main loop stalled; election failed

:func:`decide` returns the next action, and :func:`absorb` the state after its outcome. Both are pure: the election
thread, the tests and the simulation run the same code. Every instant is on ``Clock.elapsed``.

*Trust window.* A term is trusted for ``ttl - margin`` from the *send* of the last successful attempt. A standby waits
for the holder's full ``ttl`` from its *first sight* of that attempt's ``seq``. The trust therefore ends first.

*Failure handling.* A renewal succeeds, is refused (lost), is late or has an unknown outcome. Late and unknown ones are
repeated within the remaining trust. These rules keep changes of leader rare. The dispatch script proves that no
occurrence is enqueued twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        """Return how long other replicas wait after an outage for the next attempt of a preferable one.

        Preferable is the holder of the lease, or a replica that remembers the lost state.
        """
        return self.longest_backoff + min(self.ttl / 4, 2.5)

    @property
    def presence_pause(self) -> float:
        """Return how long a leader does without presence after its connection broke repeatedly."""
        return 6 * self.ttl


#: Tolerance in seconds for sums of floats.
_ROUNDING = 1e-6

#: Seconds, or polls if those last longer, for which the others wait for a preferred replica.
PREFERENCE, PREFERENCE_POLLS = 1.0, 3

#: Failed attempts in a row after which a standby backs off.
FAILURES_BEFORE_BACKOFF = 10

#: Number of remembered campaigns with an unknown outcome. Redis may execute one of them late.
REMEMBERED_CAMPAIGNS = 16

#: Lost presence connections in one term after which the leader does without presence for a while.
PRESENCE_LOSSES = 3


# --- States


@dataclass(frozen=True, slots=True)
class Sighting:
    """Lease as a standby last saw it. ``since`` is when it first saw this state."""

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
    #: A presence channel that was seen with a subscriber after the last outage and after the last loss of this
    #: replica's own presence. If it is empty now, its holder is gone.
    counted: str = ""
    #: True while this replica has seen no outage and no loss of presence since its start.
    unbroken: bool = False
    #: When Redis was first seen without a lease.
    no_lease_since: float | None = None
    campaign: Campaign | None = None
    barred_until: float = 0.0
    seen_epoch: int = 0
    #: Nonces of campaigns with an unknown outcome, the newest last, and of the last term. A lease with one of them
    #: is free for this replica.
    nonces: tuple[str, ...] = ()
    #: Attempts in a row that Redis did not answer or refused.
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
    #: Id of the replica that alone may campaign before ``open_at``. If there was no lease, those that remember one may.
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
    """Answer to the renewal that was sent at ``sent_at``. ``outdated``: the record needs another one at once."""

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
    """Fitness of this replica to lead. Only a fit replica campaigns, and a stalled leader releases the lease."""

    stalled: bool = False
    step_down: StepDown | None = None
    #: This replica's id.
    replica: str = ""
    #: True if it has what a leader needs, above all the schedule.
    ready: bool = True
    #: True if it knows the positions that the cluster has reached.
    remembers: bool = True


# --- Rules


def decide(state: State, now: float, fitness: Fitness) -> Action:
    """Return the next action."""
    match state:
        case Leader(term=term):
            if fitness.step_down is not None:
                request = fitness.step_down
                return Release(term, request.reason, request.detail, request.preferred)
            if fitness.stalled:  # guard: stall-release
                return Release(term, TermEnd.STALLED)
            if now >= state.next_renewal and term.trusted(now):
                return Renew(term, state.seq + 1, presence=now >= state.no_presence_until)
            return Wait(min(state.next_renewal, term.trusted_until))
        case Standby(campaign=Campaign() as campaign) if (
            not fitness.stalled  # guard: stall-campaign
            and fitness.ready
            and _may_go(campaign, state.barred_until, now, fitness)
        ):
            return campaign
        case Standby():
            return Observe() if now >= state.next_poll else Wait(state.next_poll)


def _may_go(campaign: Campaign, barred_until: float, now: float, fitness: Fitness) -> bool:
    if campaign.preferred and now < campaign.open_at:
        # An operator chose this replica, even if it released the lease a moment ago.
        return campaign.preferred == fitness.replica
    if campaign.expected is None and not fitness.remembers and now < campaign.open_at:  # guard: campaign-remembers
        return False
    return now >= barred_until


def released(state: Leader, now: float, timing: Timing) -> Standby:
    """Return the state after a release for cause: other replicas go first."""
    return Standby(
        next_poll=now + timing.poll_interval,
        barred_until=now + timing.ttl,  # guard: campaign-after-release
        seen_epoch=state.term.epoch,
    )


def failed(state: State, now: float, timing: Timing) -> Standby:
    """Return the state after an error in the election. It drops what was seen, which may have caused the error."""
    next_poll = now + timing.retry_interval
    if isinstance(state, Leader):
        # Its nonce is dropped, so that it does not take its own lease back: it may fail again where others do not.
        return Standby(next_poll=next_poll, seen_epoch=state.term.epoch)
    return Standby(next_poll, barred_until=state.barred_until, seen_epoch=state.seen_epoch, nonces=state.nonces)


def distrusted(state: State, now: float) -> bool:
    """True for a leader whose trust has expired."""
    return isinstance(state, Leader) and not state.term.trusted(now)


def absorb(state: State, outcome: Outcome, now: float, timing: Timing) -> State:
    """Return the state after an outcome. A leader whose trust has expired becomes a standby."""
    if isinstance(state, Leader):
        return _as_leader(state, outcome, now, timing)
    return _as_standby(state, outcome, now, timing)


def _as_leader(state: Leader, outcome: Outcome, now: float, timing: Timing) -> State:
    match outcome:
        case Renewal(answer=Renewed(presence=presence), sent_at=sent_at, outdated=outdated):
            term = state.term.until(sent_at + timing.ttl - timing.margin)  # guard: trust-from-send
            state = replace(
                state,
                term=term,
                seq=state.seq + 1,
                next_renewal=now if outdated else sent_at + timing.renew_interval,
                presence=presence,
            )
        case Renewal(answer=Lost()):
            return Standby(next_poll=now, seen_epoch=state.term.epoch, nonces=(state.term.nonce,))
        case Fenced(nonce=nonce) if nonce == state.term.nonce:
            return Standby(next_poll=now, seen_epoch=state.term.epoch, nonces=(nonce,))
        case PresenceReady() if not state.presence and now >= state.no_presence_until:  # guard: presence-registered
            state = replace(state, next_renewal=now)
        case Renewal() | Unknown():
            state = replace(
                state,
                seq=state.seq + 1,  # guard: renewal-number
                next_renewal=now + timing.retry_interval,
            )
        case PresenceBroke():  # guard: presence-lost
            losses = state.presence_losses + 1
            flapping = losses >= PRESENCE_LOSSES  # guard: presence-flapping
            state = replace(
                state,
                presence="",
                presence_losses=0 if flapping else losses,
                no_presence_until=now + timing.presence_pause if flapping else state.no_presence_until,
                next_renewal=now,
            )
        case _:
            pass
    if distrusted(state, now):
        return Standby(next_poll=now, seen_epoch=state.term.epoch, nonces=(state.term.nonce,))
    return state


def _as_standby(state: Standby, outcome: Outcome, now: float, timing: Timing) -> State:
    match outcome:
        case LeaseView():
            return _observed(state, outcome, now, timing)
        case Campaigned(answer=Acquired(term=term, presence=presence)) if term.trusted(now):
            sent_at = term.trusted_until - timing.ttl + timing.margin
            return Leader(term=term, since=now, seq=1, next_renewal=sent_at + timing.renew_interval, presence=presence)
        case Campaigned(answer=Acquired(term=term), nonce=nonce):
            # Redis is too slow to hold a lease. Without a pause, each round trip would take a new epoch.
            return Standby(
                next_poll=now + timing.poll_interval,
                barred_until=now + timing.ttl,
                seen_epoch=term.epoch,
                nonces=(nonce,),
            )
        case Campaigned(answer=Unknown(), nonce=nonce):
            nonces = (*state.nonces, nonce)[-REMEMBERED_CAMPAIGNS:]  # guard: campaign-nonces
            return _failed(replace(state, unbroken=False, nonces=nonces), now, timing)
        case Campaigned():
            return replace(state, campaign=None, next_poll=now + timing.poll_interval, failures=0)
        case Forbidden():
            return replace(state, campaign=None, next_poll=now + timing.poll_interval, barred_until=now + timing.ttl)
        case Woken():
            return replace(state, next_poll=now)
        case PresenceBroke():
            # The same cause may have cut the leader's presence.
            return replace(state, counted="", unbroken=False)  # guard: presence-own-lost
        case PresenceReady() | Fenced():
            return state
        case _:
            state = replace(state, counted="", unbroken=False)  # guard: presence-after-outage
            return _failed(replace(state, no_lease_since=None), now, timing)


def _failed(state: Standby, now: float, timing: Timing) -> Standby:
    """Return the state after a failed attempt. After several in a row, attempts back off."""
    pause = timing.poll_interval * 2 ** min(max(state.failures - FAILURES_BEFORE_BACKOFF, 0), 10)
    pause = min(pause, timing.longest_backoff)
    return replace(state, campaign=None, next_poll=now + pause, failures=state.failures + 1)


def _observed(state: Standby, view: LeaseView, now: float, timing: Timing) -> Standby:
    """Return the state after the lease was read."""
    record = view.record
    seen_epoch = max(state.seen_epoch, record.epoch if record else 0)  # guard: epoch-seen-kept
    next_poll = now + timing.poll_interval
    if record is None:
        since = now if state.no_lease_since is None else state.no_lease_since
        # The cluster starts for the first time, or an outage lost its state.
        open_at = 0.0 if state.unbroken else since + timing.preference_wait
        first = Campaign(None, TermStart.NO_LEASE, open_at=open_at)
        return replace(
            state, next_poll=next_poll, seen_epoch=seen_epoch, sighting=None, no_lease_since=since, campaign=first
        )
    sighting = _sighting(state.sighting, view, record, now)
    counted = record.presence if view.subscribers > 0 else state.counted
    campaign = _campaign(state, sighting, counted, now, timing)
    return replace(
        state,
        next_poll=next_poll,
        seen_epoch=seen_epoch,
        sighting=sighting,
        counted=counted,
        no_lease_since=None,
        campaign=campaign,
        # A server that answers reads may still refuse the campaign.
        failures=state.failures if campaign else 0,
    )


def _sighting(before: Sighting | None, view: LeaseView, record: LeaseRecord, now: float) -> Sighting:
    """Return what was seen now, with the beginnings of what has not changed since ``before``."""
    unmoved = before is not None and (before.record.epoch, before.record.seq, before.record.state) == (
        record.epoch,
        record.seq,
        record.state,
    )
    since = before.since if before is not None and unmoved else now
    # After a restart or failover of Redis all channels are empty, so absence proves nothing.
    if record.run_id and view.run_id not in ("", record.run_id):  # guard: presence-same-server
        seen_moved = before is not None and unmoved and before.moved_since is not None
        return Sighting(record, since, moved_since=before.moved_since if before is not None and seen_moved else now)
    if view.subscribers != 0:
        return Sighting(record, since)
    same_absence = (
        before is not None
        and unmoved  # guard: presence-unrenewed
        and before.absent_since is not None
        and before.run_id == view.run_id
    )
    absent_since = before.absent_since if before is not None and same_absence else now
    return Sighting(record, since, absent_since, view.run_id)


def _campaign(state: Standby, sighting: Sighting, counted: str, now: float, timing: Timing) -> Campaign | None:
    """Return a campaign if the lease is free, else ``None``. ``counted`` is as in :class:`Standby`, after this poll."""
    record = sighting.record
    expected = Expected(record.epoch, record.seq)
    if not record.held:
        if not record.preferred:
            return Campaign(expected, TermStart.RELEASED)
        open_at = sighting.since + max(PREFERENCE, PREFERENCE_POLLS * timing.poll_interval)
        return Campaign(expected, TermStart.RELEASED, record.preferred, open_at)
    if record.nonce in state.nonces:  # guard: campaign-own-nonce
        return Campaign(expected, TermStart.OWN_LEASE)
    absent_since = sighting.absent_since if _absence_counts(state, sighting, counted) else None
    if absent_since is not None and now - absent_since >= timing.poll_interval - _ROUNDING:  # guard: presence-absence
        return Campaign(replace(expected, absent=True), TermStart.LEADER_GONE)
    # An unreadable ttl parses as 0.
    ttl = record.ttl_ms / 1000 or timing.ttl
    if now - sighting.since >= ttl and not _holder_goes_first(sighting, ttl, now, timing):
        return Campaign(expected, TermStart.EXPIRED)
    return None


def _holder_goes_first(sighting: Sighting, ttl: float, now: float, timing: Timing) -> bool:
    """True for a moment after a restart or failover of Redis that outlasted the lease.

    On a new server the holder may dispatch at once, while any other replica has to wait until the holder must have
    stopped. That wait counts from the first contact, so leaving the lease to the holder costs nothing.
    """
    return (
        sighting.moved_since is not None
        and now - sighting.moved_since < min(timing.preference_wait, ttl)  # guard: campaign-holder-first
    )


def _absence_counts(state: Standby, sighting: Sighting, counted: str) -> bool:
    """True if an empty presence channel means that the holder is gone. An outage empties the channels of all."""
    record = sighting.record
    if record.presence == counted:  # guard: presence-channel-seen
        return True
    # The channel had a subscriber when it was registered, on this run of the server.
    return state.unbroken and (
        record.run_id != "" and record.run_id == sighting.run_id  # guard: presence-newcomer-server
    )
