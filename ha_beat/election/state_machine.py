"""State machine of the election. It decides without I/O.

::

            lease free, expired or holder gone             renewed
    STANDBY ------------------------------> LEADER --------------------+
       ^    Campaign -> Acquired              |  ^                     |
       |                                      |  +---------------------+
       +--------------------------------------+
         lost; fenced; trust expired; stepped down; main loop stalled; election failed

:func:`decide` returns the next action, and :func:`absorb` the state after its outcome. Both are pure: the election
thread, the tests and the simulation run the same code. Every instant is on ``Clock.elapsed``.

*Trust window.* A term is trusted for ``ttl - margin`` from the *send* of the last successful attempt. A standby waits
for the holder's full ``ttl`` from its *first sight* of that attempt's ``seq``. The trust therefore ends first.

*Failure handling.* A renewal succeeds, is refused (lost), is late or has an unknown outcome. Late and unknown renewals
are repeated while the trust lasts. These rules only keep changes of leader rare. The dispatch script ensures that no
occurrence is enqueued twice.
"""

from __future__ import annotations

from dataclasses import replace

from ha_beat.election.free_lease import campaign_for, see
from ha_beat.election.states import (
    Action,
    Campaign,
    Campaigned,
    Fenced,
    Fitness,
    Forbidden,
    Leader,
    Observe,
    Outcome,
    PresenceBroke,
    PresenceReady,
    Release,
    Renew,
    Renewal,
    Standby,
    State,
    Timing,
    Unknown,
    Wait,
    Woken,
)
from ha_beat.reasons import TermEnd, TermStart
from ha_beat.store.lease import Acquired, LeaseView, Lost, Renewed

#: Failed attempts in a row after which a standby backs off.
FAILURES_BEFORE_BACKOFF = 10

#: Number of remembered campaigns with an unknown outcome. Redis may execute one of them late.
REMEMBERED_CAMPAIGNS = 16

#: Lost presence connections in one term after which the leader registers no presence for a while.
PRESENCE_LOSSES = 3


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
        # Without its nonce, this replica does not take its own lease back: it may fail again, and others may not.
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
            # Redis is too slow to hold a lease. Without a pause, each round trip would assign a new epoch.
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


def unchanged(state: Standby, view: LeaseView, now: float, timing: Timing) -> bool:
    """True if :func:`absorb` of this observation changes nothing but the time of the next poll.

    It compares records by identity: the store returns the same object while the lease does not change.
    """
    seen = state.sighting
    return (
        seen is not None
        and view.record is seen.record
        and view.subscribers > 0
        and state.counted == seen.record.presence
        and seen.absent_since is None
        and seen.moved_since is None
        and state.campaign is None
        and not state.failures
        and campaign_for(state, seen, state.counted, now, timing) is None
    )


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
    sighting = see(state.sighting, view, record, now)
    counted = record.presence if view.subscribers > 0 else state.counted
    campaign = campaign_for(state, sighting, counted, now, timing)
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
