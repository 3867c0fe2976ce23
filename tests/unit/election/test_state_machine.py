"""Rules of the election. Instants are in seconds; the ttl is 10 s with a margin of 1 s."""

from dataclasses import replace

import pytest

from ha_beat.election import state_machine
from ha_beat.election.state_machine import PRESENCE_LOSSES, decide, distrusted, failed, released
from ha_beat.election.states import (
    Campaign,
    Campaigned,
    Fenced,
    Fitness,
    Forbidden,
    Leader,
    Observe,
    PresenceBroke,
    PresenceReady,
    Release,
    Renew,
    Renewal,
    Standby,
    StepDown,
    Unknown,
    Wait,
    Woken,
)
from ha_beat.reasons import ForbiddenReason, TermEnd, TermStart
from ha_beat.store.lease import Expected, Lost, Refused
from tests.unit.election.machine import (
    FIT,
    NEWCOMER,
    OURS,
    THEIRS,
    TIMING,
    absent,
    absorb,
    acquired,
    campaigns,
    held,
    leader,
    renewed,
    view,
    watch,
)

# --- Trust of the leader


def test_slow_success_does_not_extend_trust():
    """Trust and the next renewal count from the send, even if the attempt arrived after a later one."""
    assert absorb(leader(), renewed(sent_at=104.0), 108.0).term.trusted_until == 113.0
    assert absorb(leader(), Renewal("late", sent_at=108.0), 108.1).term.trusted_until == 109.0
    after = absorb(Standby(), acquired(sent_at=100.0), 105.0)
    assert (after.term.trusted_until, after.next_renewal) == (109.0, 102.5)


def test_renewal_answered_after_the_trust_does_not_revive_the_term():
    """Neither a leader whose trust would have ended nor a replica that stopped leading goes on."""
    assert isinstance(absorb(leader(), renewed(104.0), 113.0), Standby)
    assert isinstance(absorb(Standby(), renewed(100.0), 100.1), Standby)


def test_trust_ends_before_a_standby_may_take_over():
    """After a renewal, the leader stops at 9 s, and a standby that saw the renewal immediately waits 10 s."""
    assert distrusted(absorb(leader(), renewed(sent_at=100.0)), 109.0)
    assert watch((100.0, view()), (109.9, view())).campaign is None


def test_leader_without_any_answer_stops_by_itself():
    state = leader()
    now, attempts = 102.5, 0
    while isinstance(state, Leader):
        if isinstance(decide(state, now, FIT), Renew):
            attempts += 1
            state = absorb(state, Unknown("timeout"), now + 0.1)
        now += 0.1
        if distrusted(state, now):
            state = absorb(state, Unknown(""), now)
    assert 108.9 < now < 109.3
    assert attempts > 5


def test_each_renewal_attempt_has_a_new_number():
    """An attempt that arrives late must differ from the next one."""
    state, numbers = leader(), []
    for outcome in (Unknown("lost"), Renewal("late", 103.0), renewed(103.5), Unknown("lost")):
        numbers.append(decide(state, state.next_renewal, FIT).seq)
        state = absorb(state, outcome, 104.0)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 1


def test_leader_stops_at_a_lost_lease_or_a_fence_of_its_term():
    for outcome in (Renewal(Lost(TermEnd.SUPERSEDED), 102.5), Fenced("ours", TermEnd.SUPERSEDED)):
        after = absorb(leader(), outcome, 102.6)
        assert isinstance(after, Standby)
        assert after.seen_epoch == OURS.epoch
    assert absorb(leader(), Fenced("older", TermEnd.SUPERSEDED), 102.6) == leader()


def test_leader_past_its_trust_does_not_renew():
    """Another replica may hold the lease by now."""
    assert isinstance(decide(leader(next_renewal=105.0), 109.0, FIT), Wait)


def test_unfit_leader_releases_even_when_a_renewal_is_due():
    assert decide(leader(), 105.0, Fitness(stalled=True)) == Release(OURS, TermEnd.STALLED)
    asked = Fitness(step_down=StepDown(TermEnd.STEP_DOWN, "ann", "two"))
    assert decide(leader(), 105.0, asked) == Release(OURS, TermEnd.STEP_DOWN, "ann", "two")


# --- Expiry of the lease


def test_held_lease_that_moves_is_left_alone():
    assert watch(*((100.0 + 2 * n, held(seq=n)) for n in range(20))).campaign is None


@pytest.mark.parametrize(("ttl_ms", "waits"), [(30_000, 30.0), (0, TIMING.ttl)], ids=["holder's", "unreadable"])
def test_lease_is_stale_only_after_the_holders_ttl_since_first_sight(ttl_ms, waits):
    """The time is counted on this replica's clock. If the ttl is unreadable, this replica's ttl counts."""
    seen = watch((100.0, held(ttl_ms=ttl_ms)))
    assert watch((99.9 + waits, held(ttl_ms=ttl_ms)), state=seen).campaign is None
    expired = watch((100.0 + waits, held(ttl_ms=ttl_ms)), state=seen)
    assert expired.campaign == Campaign(Expected(7, 3), TermStart.EXPIRED)


def test_single_look_never_makes_a_lease_stale():
    """A replica that starts does not know when the lease was renewed."""
    assert watch((1e9, view())).campaign is None


@pytest.mark.parametrize("look", [held(seq=4), held(epoch=8)], ids=["renewed", "acquired"])
def test_renewal_or_acquisition_restarts_the_wait(look):
    seen = watch((100.0, view()), (109.0, look))
    assert watch((118.9, look), state=seen).campaign is None
    assert watch((119.0, look), state=seen).campaign is not None


def test_missing_or_released_lease_is_free_at_once():
    assert watch((100.0, view(None)), state=NEWCOMER).campaign == Campaign(None, TermStart.NO_LEASE)
    free = watch((100.0, held(state="released", reason=TermEnd.SHUTDOWN)))
    assert free.campaign == Campaign(Expected(7, 3), TermStart.RELEASED)


@pytest.mark.parametrize(
    ("before", "look", "now", "expected"),
    [
        ([(99.0, view())], view(), 108.9, True),
        ([(99.0, view())], view(), 109.0, False),
        ([(99.0, view())], held(seq=4), 99.1, False),
        ([(99.0, view())], absent(), 99.1, False),
        ([(99.0, view()), (99.1, absent())], view(), 99.2, False),
        ([(99.0, view(subscribers=-1))], view(), 99.1, False),
        ([(99.0, held(run_id="before")), (99.1, absent("after", run_id="before"))], view(), 99.2, False),
        ([(99.0, held(state="released"))], view(), 99.1, False),
        ([], view(), 99.1, False),
    ],
    ids=["same", "expired", "renewed", "absent", "back", "uncounted", "moved", "released", "first"],
)
def test_poll_without_a_change_only_moves_the_next_one(before, look, now, expected):
    state = watch(*before)
    assert state_machine.unchanged(state, look, now, TIMING) is expected
    after = absorb(state, look, now)
    assert (after == replace(state, next_poll=after.next_poll)) is expected


# --- Campaigns


@pytest.mark.parametrize(
    ("state", "since", "look"),
    [
        # Otherwise each campaign on such a slow Redis would take a new epoch.
        (absorb(Standby(), acquired(sent_at=100.0), 109.0), 109.0, held(state="released")),
        # Otherwise a hung leader that recovers would take the released lease back.
        (released(leader(), 100.0, TIMING), 100.0, held(state="released")),
        # An operator may remove the cause: another app, or a newer schema.
        (absorb(watch((100.0, view(None))), Forbidden(ForbiddenReason.OTHER_APP, "")), 100.0, view(None)),
    ],
    ids=["acquired too late", "released for cause", "forbidden"],
)
def test_replica_that_others_should_replace_is_barred_for_a_ttl(state, since, look):
    seen = watch((since + 0.2, look), state=state)
    assert isinstance(decide(seen, since + 9.9, FIT), Wait | Observe)
    assert campaigns(seen, since + 10.0)


@pytest.mark.parametrize("later", [[], [("2", Unknown("timeout")), ("3", Refused("moved"))]], ids=["last", "earlier"])
def test_lease_of_a_campaign_that_arrived_late_is_free_for_its_owner(later):
    """The record has the nonce of a campaign of this replica whose reply was lost."""
    state = Standby()
    for nonce, outcome in [("ours", Unknown("timeout")), *later]:
        state = absorb(state, Campaigned(outcome, nonce))
    assert watch((100.1, held(holder="we", nonce="ours")), state=state).campaign.reason is TermStart.OWN_LEASE
    assert watch((100.1, view()), state=state).campaign is None


def test_campaigns_of_unknown_outcome_are_forgotten_at_a_limit():
    """Redis may answer reads and hang on writes for days."""
    state = Standby()
    for number in range(1000):
        state = absorb(state, Campaigned(Unknown("timeout"), str(number)))
    assert len(state.nonces) < 100
    assert state.nonces[-1] == "999"


def test_leader_whose_election_failed_leaves_its_lease_to_others():
    """Otherwise a fault of this replica alone would end each of its terms, and no other replica would lead."""
    after = failed(leader(), 101.0, TIMING)
    assert after.seen_epoch == OURS.epoch
    assert watch((101.1, held(holder="we", nonce="ours")), state=after).campaign is None


def test_refused_campaign_looks_again_before_it_campaigns_again():
    after = absorb(watch((100.0, held(state="released"))), Campaigned(Refused("the lease has moved"), "ours"))
    assert isinstance(decide(after, 100.0, FIT), Wait)
    assert decide(after, 100.1, FIT) == Observe()


def test_stalled_replica_does_not_campaign():
    """It would acquire a lease that it must release."""
    free = watch((100.0, held(state="released")))
    assert (campaigns(free, 100.0), campaigns(free, 100.0, stalled=True)) == (True, False)


def test_highest_epoch_seen_is_never_forgotten():
    """The epoch of the next acquisition must be higher even if Redis has lost this one."""
    assert watch((100.0, held(epoch=99)), (100.1, view(None)), (100.2, view())).seen_epoch == 99


def test_wake_message_makes_a_standby_look_now_and_a_leader_do_nothing():
    """A handover after a release needs no poll."""
    waiting = Standby(next_poll=200.0)
    assert decide(waiting, 100.0, FIT) == Wait(200.0)
    assert decide(absorb(waiting, Woken()), 100.0, FIT) == Observe()
    assert absorb(leader(), Woken()) == leader()


def test_preferred_replica_goes_first_and_the_others_soon_after():
    """A step-down in favour of a replica ends its bar, and delays the others for a moment."""
    look = view(replace(THEIRS, state="released", preferred="b"), -1)
    barred, free = absorb(Standby(barred_until=200.0), look), absorb(Standby(), look)
    assert (campaigns(barred, 100.0, replica="b"), campaigns(barred, 100.0, replica="c")) == (True, False)
    assert (campaigns(free, 100.5, replica="c"), campaigns(free, 101.0, replica="c")) == (False, True)
    assert not campaigns(barred, 101.0, replica="b")


def test_redis_that_does_not_answer_is_polled_less_and_less_often():
    state, now, pauses = Standby(), 0.0, []
    while now < 60.0:
        state = absorb(state, Unknown("refused"), now)
        pauses.append(round(state.next_poll - now, 6))
        now = state.next_poll
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(TIMING.poll_interval)
    assert pauses[-1] == pytest.approx(TIMING.longest_backoff)
    assert len(pauses) < 80
    state = absorb(state, view(), now)
    assert state.next_poll - now == pytest.approx(TIMING.poll_interval)
    assert absorb(state, Unknown("refused"), now).next_poll - now == pytest.approx(TIMING.poll_interval)


def test_campaigns_refused_by_a_read_only_redis_back_off():
    """A successful read of the free lease in between does not end the series of refusals."""
    state, now, count = Standby(), 0.0, 0
    while now < 60.0:
        state = absorb(state, view(None, -1), now)
        assert campaigns(state, now)
        count += 1
        state = absorb(state, Campaigned(Unknown("READONLY"), "n"), now)
        now = state.next_poll
    assert count < 80


# --- Presence of the leader


def test_leader_whose_presence_broke_renews_at_once_without_it():
    """The renewal must arrive before a standby sees the dead channel twice."""
    after = absorb(leader(), PresenceBroke(), 101.0)
    assert after.presence == ""
    assert isinstance(decide(after, 101.0, FIT), Renew)


def test_new_presence_connection_is_registered_at_once():
    assert isinstance(decide(absorb(leader(presence=""), PresenceReady(), 101.0), 101.0, FIT), Renew)
    assert absorb(leader(), PresenceReady(), 101.0) == leader()


def test_presence_that_breaks_repeatedly_is_not_used_for_a_while():
    """Otherwise each loss of the connection would put the lease at risk."""
    state = leader(term=OURS.until(1e9))
    for n in range(PRESENCE_LOSSES):
        state = absorb(state, PresenceBroke(), 101.0 + n)
    last = 101.0 + PRESENCE_LOSSES - 1
    assert not decide(state, last + 59.0, FIT).presence
    assert decide(state, last + 61.0, FIT).presence


OTHER_OUTCOMES = [
    *(view(), view(None), Campaigned(Refused("no"), "n"), Campaigned(Unknown("no"), "n"), Unknown("no"), Woken()),
    *(Renewal(Lost("no"), 100.0), Renewal("late", 1e6), PresenceBroke(), PresenceReady(), Fenced("ours", "no")),
    Forbidden(ForbiddenReason.OTHER_APP, ""),
]


@pytest.mark.parametrize("state", [Standby(), leader()])
@pytest.mark.parametrize("outcome", OTHER_OUTCOMES, ids=repr)
def test_standby_leads_only_after_an_acquisition(state, outcome):
    """No other outcome lengthens trust."""
    after = absorb(state, outcome, 101.0)
    assert isinstance(after, Standby) or after.term == state.term
