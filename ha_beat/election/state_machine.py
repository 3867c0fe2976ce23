"""Who leads, decided without I/O.

::

            seen free, stale or unattended                 renewed
    STANDBY ------------------------------> LEADER --------------------+
       ^    Acquire -> Acquired               |  ^                     |
       |                                      |  +---------------------+
       +--------------------------------------+
         lost; trust run out; stepped down; main loop stalled

:func:`decide` says what to do next and :func:`absorb` what follows from the outcome. Both are pure: the thread
that drives them, the tests and the simulation all run these two. Every instant is on ``Clock.elapsed``.

*Trust window.* A term is trusted from the *send* of the attempt that moved the lease for ``ttl - margin``, and a
standby waits out the holder's full ``ttl`` from when it *first saw* that attempt's ``seq``: the first ends sooner.

*Failure handling.* Each attempt is renewed, lost, or unknown. Unknown is retried within the trust that is left. All
of this keeps changes of leader rare; the proof that nothing is enqueued twice is in the dispatch script.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ha_beat.reasons import TermEnd, TermStart
from ha_beat.store.lease import Acquired, Expected, LeaseRecord, LeaseView, Lost, Refused, Renewed, Term


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. ``margin`` is taken off the trust window for clocks that run at different rates."""

    ttl: float = 10.0
    renew_interval: float = 2.5
    poll_interval: float = 0.1
    stall_timeout: float = 15.0

    @property
    def margin(self) -> float:
        return self.ttl / 10  # guard: trust-margin

    @property
    def retry_interval(self) -> float:
        """After an attempt whose outcome is unknown."""
        return min(self.renew_interval / 5, 0.5)

    @property
    def longest_backoff(self) -> float:
        """Between a standby's attempts at a Redis that does not answer, or refuses."""
        return max(1.0, self.poll_interval)

    @property
    def courtesy(self) -> float:
        """How long the lease is left to those who can do more with it after an outage: until their next attempt."""
        return self.longest_backoff + min(self.ttl / 4, 2.5)

    @property
    def presence_pause(self) -> float:
        """How long to do without presence when its connection keeps breaking."""
        return 6 * self.ttl


#: Of sums of floats, in seconds.
_ROUNDING = 1e-6

#: For so many seconds, or so many polls if that is longer, the others let a preferred replica go first.
PREFERENCE, PREFERENCE_POLLS = 1.0, 3

#: After so many attempts in a row that failed, the pauses between a standby's attempts grow.
PATIENCE = 10

#: So many campaigns of unknown outcome are remembered: one of them may be carried out late.
REMEMBERED_CAMPAIGNS = 16

#: So many lost presence connections in one term, and the leader does without for a while.
PRESENCE_LOSSES = 3


# --- States


@dataclass(frozen=True, slots=True)
class Sighting:
    """A lease as a standby last saw it, and since when it stands so."""

    record: LeaseRecord
    since: float
    #: When its presence channel was first found without subscriber, on the server ``run_id``.
    absent_since: float | None = None
    run_id: str = ""
    #: Since when another server answers than the one that the term began on.
    moved_since: float | None = None


@dataclass(frozen=True, slots=True)
class Standby:
    """Not leading. ``barred_until`` forbids campaigns after a release for cause."""

    next_poll: float = 0.0
    sighting: Sighting | None = None
    #: A presence channel seen with a subscriber since Redis last failed to answer, or this replica's own presence
    #: ended: its absence means a death.
    counted: str = ""
    #: Neither has happened since this replica began: an absence on the lease's own server is no outage's.
    unbroken: bool = False
    #: Since when there has been no lease at all.
    bare_since: float | None = None
    campaign: Campaign | None = None
    barred_until: float = 0.0
    seen_epoch: int = 0
    #: Of campaigns of unknown outcome, the newest last, and of the last term: a record that bears one is nobody's.
    nonces: tuple[str, ...] = ()
    #: Attempts in a row that Redis did not answer, or refused to carry out.
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Leader:
    """Leading, for as long as the term is trusted. ``presence`` is the channel registered in the lease."""

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
    """Nothing to do before ``until``."""

    until: float


@dataclass(frozen=True, slots=True)
class Observe:
    """Look at the lease."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """Try to take the lease as it was seen. ``reason`` is why it is free."""

    expected: Expected | None
    reason: TermStart
    #: Before ``open_at`` the lease is for the replica of this id alone; where there was none, for who remembers one.
    preferred: str = ""
    open_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Renew:
    """Move the lease on; ``seq`` numbers the attempt. With ``presence`` False the record shall name no channel."""

    term: Term
    seq: int
    presence: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease back."""

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
    """The answer to the attempt that was sent at ``sent_at``."""

    answer: Renewed | Lost | Literal["late"]
    sent_at: float


@dataclass(frozen=True, slots=True)
class Campaigned:
    """The answer to a campaign under ``nonce``."""

    answer: Acquired | Refused | Unknown
    nonce: str


@dataclass(frozen=True, slots=True)
class PresenceBroke:
    """The connection that carries presence has ended."""


@dataclass(frozen=True, slots=True)
class PresenceReady:
    """A new connection that can carry presence is up."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """A dispatch under this nonce was refused: the term is over."""

    nonce: str
    reason: TermEnd
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """This replica must not lead. ``detail`` is the error's text."""

    detail: str


@dataclass(frozen=True, slots=True)
class Woken:
    """A message said: look at the lease now."""


Outcome = LeaseView | Campaigned | Renewal | Unknown | PresenceBroke | PresenceReady | Fenced | Forbidden | Woken


@dataclass(frozen=True, slots=True)
class StepDown:
    """A step-down to carry out. ``preferred`` is the id of the replica that goes first, if any."""

    reason: TermEnd
    detail: str = ""
    preferred: str = ""


@dataclass(frozen=True, slots=True)
class Fitness:
    """Whether this replica can lead. Only a fit one campaigns; a stalled one gives the lease back."""

    stalled: bool = False
    step_down: StepDown | None = None
    #: This replica's id.
    replica: str = ""
    #: Whether it has what a leader needs, the schedule above all.
    ready: bool = True
    #: Whether it knows how far the cluster had come.
    remembers: bool = True


# --- Rules


def decide(state: State, now: float, fitness: Fitness) -> Action:
    """What to do now."""
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
        # Somebody chose: then it does not matter who gave up the lease lately.
        return campaign.preferred == fitness.replica
    if campaign.expected is None and not fitness.remembers and now < campaign.open_at:  # guard: campaign-remembers
        return False
    return now >= barred_until


def released(state: Leader, now: float, timing: Timing) -> Standby:
    """After giving up the lease for cause: others first."""
    return Standby(
        next_poll=now + timing.poll_interval,
        barred_until=now + timing.ttl,  # guard: campaign-after-release
        seen_epoch=state.term.epoch,
    )


def failed(state: State, now: float, timing: Timing) -> Standby:
    """After an error in the election itself. What was seen may be what it failed on; what was tried stays known."""
    next_poll = now + timing.retry_interval
    if isinstance(state, Leader):
        # Its own lease is not free to it: it would fail in it again, and others may not.
        return Standby(next_poll=next_poll, seen_epoch=state.term.epoch)
    return Standby(next_poll, barred_until=state.barred_until, seen_epoch=state.seen_epoch, nonces=state.nonces)


def distrusted(state: State, now: float) -> bool:
    """Whether a leader has run out of trust."""
    return isinstance(state, Leader) and not state.term.trusted(now)


def absorb(state: State, outcome: Outcome, now: float, timing: Timing) -> State:
    """What follows from an outcome. A leader without trust is none."""
    if isinstance(state, Leader):
        return _as_leader(state, outcome, now, timing)
    return _as_standby(state, outcome, now, timing)


def _as_leader(state: Leader, outcome: Outcome, now: float, timing: Timing) -> State:
    match outcome:
        case Renewal(answer=Renewed(presence=presence), sent_at=sent_at):
            term = state.term.until(sent_at + timing.ttl - timing.margin)  # guard: trust-from-send
            state = replace(
                state,
                term=term,
                seq=state.seq + 1,
                next_renewal=sent_at + timing.renew_interval,
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
            return _look(state, outcome, now, timing)
        case Campaigned(answer=Acquired(term=term, presence=presence)) if term.trusted(now):
            sent_at = term.trusted_until - timing.ttl + timing.margin
            return Leader(term=term, since=now, seq=1, next_renewal=sent_at + timing.renew_interval, presence=presence)
        case Campaigned(answer=Acquired(term=term), nonce=nonce):
            # So slow a Redis can't carry a lease: without a pause this would take a new epoch at every trip.
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
            # What has cut it may have cut the leader's.
            return replace(state, counted="", unbroken=False)  # guard: presence-own-lost
        case PresenceReady() | Fenced():
            return state
        case _:
            state = replace(state, counted="", unbroken=False)  # guard: presence-after-outage
            return _failed(replace(state, bare_since=None), now, timing)


def _failed(state: Standby, now: float, timing: Timing) -> Standby:
    """Redis did not do what it was asked: again soon, then less and less often."""
    pause = timing.poll_interval * 2 ** min(max(state.failures - PATIENCE, 0), 10)
    pause = min(pause, timing.longest_backoff)
    return replace(state, campaign=None, next_poll=now + pause, failures=state.failures + 1)


def _look(state: Standby, view: LeaseView, now: float, timing: Timing) -> Standby:
    record = view.record
    seen_epoch = max(state.seen_epoch, record.epoch if record else 0)  # guard: epoch-seen-kept
    state = replace(state, next_poll=now + timing.poll_interval, seen_epoch=seen_epoch, campaign=None)
    if record is None:
        since = now if state.bare_since is None else state.bare_since
        # A cluster's first start, unless an outage has taken all that there was.
        campaign = Campaign(None, TermStart.NO_LEASE, open_at=0.0 if state.unbroken else since + timing.courtesy)
        return replace(state, sighting=None, bare_since=since, campaign=campaign)
    if view.subscribers > 0:
        state = replace(state, counted=record.presence)
    sighting = _sight(state.sighting, view, record, now)
    opportunity = _opportunity(state, sighting, now, timing)
    # What can be read may still refuse to be written.
    failures = state.failures if opportunity else 0
    return replace(state, sighting=sighting, bare_since=None, campaign=opportunity, failures=failures)


def _sight(before: Sighting | None, view: LeaseView, record: LeaseRecord, now: float) -> Sighting:
    unmoved = before is not None and (before.record.epoch, before.record.seq, before.record.state) == (
        record.epoch,
        record.seq,
        record.state,
    )
    since = before.since if before is not None and unmoved else now
    # A term does not outlive the run of the server that it began on: its holder may be there, and hear so in a moment.
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


def _opportunity(state: Standby, sighting: Sighting, now: float, timing: Timing) -> Campaign | None:
    """Why the lease may be taken, if it may."""
    record = sighting.record
    expected = Expected(record.epoch, record.seq)
    if not record.held:
        if not record.preferred:
            return Campaign(expected, TermStart.RELEASED)
        open_at = sighting.since + max(PREFERENCE, PREFERENCE_POLLS * timing.poll_interval)
        return Campaign(expected, TermStart.RELEASED, record.preferred, open_at)
    if record.nonce in state.nonces:  # guard: campaign-own-nonce
        return Campaign(expected, TermStart.OWN_LEASE)
    absent_since = sighting.absent_since if _means_death(state, sighting) else None
    if absent_since is not None and now - absent_since >= timing.poll_interval - _ROUNDING:  # guard: presence-absence
        return Campaign(replace(expected, absent=True), TermStart.LEADER_GONE)
    # It can't be read where somebody has tampered with it.
    ttl = record.ttl_ms / 1000 or timing.ttl
    if now - sighting.since >= ttl and not _holders_turn(sighting, ttl, now, timing):
        return Campaign(expected, TermStart.EXPIRED)
    return None


def _holders_turn(sighting: Sighting, ttl: float, now: float, timing: Timing) -> bool:
    """After an outage that outlasted the lease, the holder goes first.

    It may lead on at once, where anybody else has to wait on another server until the holder must have stopped; which
    is counted from the first contact, so that this costs nothing.
    """
    return (
        sighting.moved_since is not None
        and now - sighting.moved_since < min(timing.courtesy, ttl)  # guard: campaign-holder-first
    )


def _means_death(state: Standby, sighting: Sighting) -> bool:
    """Whether the holder's absence can't be an outage's, which empties the channels of the living as well."""
    record = sighting.record
    if record.presence == state.counted:  # guard: presence-channel-seen
        return True
    # It was counted when it was registered, on this very run of the server.
    return state.unbroken and (
        record.run_id != "" and record.run_id == sighting.run_id  # guard: presence-newcomer-server
    )
