"""The election's rules, one hazard each. Instants are seconds; the timing is 10 s of ttl with 1 s of margin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_beat.election.state_machine import (
    PRESENCE_LOSSES,
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
    Timing,
    Unknown,
    Wait,
    Woken,
    absorb,
    decide,
    distrusted,
    failed,
    released,
)
from ha_beat.reasons import ForbiddenReason, TermEnd, TermStart
from ha_beat.store.lease import Acquired, Expected, LeaseRecord, LeaseView, Lost, Refused, Renewed, Term

TIMING = Timing(ttl=10.0, renew_interval=2.5, poll_interval=0.1, stall_timeout=15.0)
FIT = Fitness()
OURS = Term("we", epoch=7, nonce="ours", gen="g", run_id="r", trusted_until=109.0)
THEIRS = LeaseRecord(holder="they", epoch=7, nonce="theirs", seq=3, ttl_ms=10_000, state="held", presence="chan")


def leader(**changes: object) -> Leader:
    """Leading since 100, when the attempt was sent."""
    values = {"term": OURS, "since": 100.0, "seq": 1, "next_renewal": 102.5, "presence": "mine"}
    return Leader(**{**values, **changes})


def view(record: LeaseRecord | None = THEIRS, subscribers: int = 1, run_id: str = "r") -> LeaseView:
    return LeaseView(record, subscribers, server_ms=0, run_id=run_id if subscribers == 0 else "")


def acquired(sent_at: float) -> Acquired:
    return Acquired(replace(OURS, trusted_until=sent_at + 9), ("", ""), "", "", "mine", 0)


def renewed(sent_at: float, presence: str = "mine") -> Renewal:
    return Renewal(Renewed(presence, 0), sent_at)


def watch(*looks: tuple[float, LeaseView], state: Standby | None = None) -> Standby:
    """A standby that looked at these instants."""
    standby = state or Standby()
    for now, look in looks:
        after = absorb(standby, look, now, TIMING)
        assert isinstance(after, Standby)
        standby = after
    return standby


# --- The leader's trust


def test_slow_successful_renewal_does_not_extend_trust():
    """A renewal sent at 104 and answered at 108 is trusted until 113, not 117."""
    after = absorb(leader(), renewed(sent_at=104.0), 108.0, TIMING)
    assert isinstance(after, Leader)
    assert after.term.trusted_until == 113.0


def test_a_renewal_answered_after_its_own_trust_does_not_revive_the_term():
    """A reply that took longer than the trust it brings leaves no leader."""
    assert isinstance(absorb(leader(), renewed(sent_at=104.0), 113.0, TIMING), Standby)


def test_slow_successful_acquire_does_not_extend_trust():
    """The term that an acquisition brings is counted from its send as well."""
    after = absorb(Standby(), Campaigned(acquired(sent_at=100.0), "ours"), 105.0, TIMING)
    assert isinstance(after, Leader)
    assert (after.term.trusted_until, after.next_renewal) == (109.0, 102.5)


def test_acquire_answered_too_late_bars_for_a_ttl():
    """So slow a Redis can't carry a lease: stand by for a ttl, or each trip would take a new epoch."""
    after = absorb(Standby(), Campaigned(acquired(sent_at=100.0), "ours"), 109.0, TIMING)
    assert isinstance(after, Standby)
    seen = watch((109.2, view(replace(THEIRS, state="released"))), state=after)
    assert not isinstance(decide(seen, 118.9, FIT), Campaign)
    assert isinstance(decide(seen, 119.0, FIT), Campaign)


def test_trust_ends_before_a_standby_may_take_over():
    """The margin: from one renewal, the leader stops at 9 s and the standby that saw it at once waits 10 s."""
    after = absorb(leader(), renewed(sent_at=100.0), 100.0, TIMING)
    standby = watch((100.0, view()), (109.9, view()))
    assert distrusted(after, 109.0)
    assert standby.campaign is None


def test_without_any_answer_the_leader_stops_by_itself():
    """Unknown outcomes are retried within the trust left, and end in a standby."""
    state = leader()
    now, attempts = 102.5, 0
    while isinstance(state, Leader):
        action = decide(state, now, FIT)
        if isinstance(action, Renew):
            attempts += 1
            state = absorb(state, Unknown("timeout"), now + 0.1, TIMING)
        now += 0.1
        if distrusted(state, now):
            state = absorb(state, Unknown(""), now, TIMING)
    assert 108.9 < now < 109.3
    assert attempts > 5


def test_each_renewal_attempt_has_a_new_number():
    """An attempt that arrives late must differ from the next one."""
    state = leader()
    numbers = []
    for outcome in (Unknown("lost"), Renewal("late", 103.0), renewed(103.5), Unknown("lost")):
        action = decide(state, state.next_renewal, FIT)
        assert isinstance(action, Renew)
        numbers.append(action.seq)
        state = absorb(state, outcome, 104.0, TIMING)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 1


def test_a_late_answer_brings_no_trust():
    """Another attempt had moved the lease already: this one's send says nothing about it."""
    after = absorb(leader(), Renewal("late", sent_at=108.0), 108.1, TIMING)
    assert isinstance(after, Leader)
    assert after.term.trusted_until == OURS.trusted_until


@pytest.mark.parametrize(
    "outcome", [Renewal(Lost(TermEnd.SUPERSEDED), 102.5), Fenced("ours", TermEnd.SUPERSEDED)], ids=["lost", "fenced"]
)
def test_leader_stops_at_a_lost_lease_or_a_fence(outcome):
    """Through a renewal or a refused dispatch."""
    after = absorb(leader(), outcome, 102.6, TIMING)
    assert isinstance(after, Standby)
    assert after.seen_epoch == OURS.epoch


def test_a_refusal_of_an_older_term_does_not_end_this_one():
    """The dispatch that was refused may have been sent under the term before."""
    assert absorb(leader(), Fenced("older", TermEnd.SUPERSEDED), 102.6, TIMING) == leader()


def test_a_leader_past_its_trust_does_not_renew():
    """Another replica may hold the lease by now."""
    assert isinstance(decide(leader(next_renewal=105.0), 109.0, FIT), Wait)


@pytest.mark.parametrize(
    ("fitness", "release"),
    [
        (Fitness(stalled=True), Release(OURS, TermEnd.STALLED)),
        (Fitness(step_down=StepDown(TermEnd.STEP_DOWN, "ann", "two")), Release(OURS, TermEnd.STEP_DOWN, "ann", "two")),
    ],
)
def test_unfit_leader_releases_even_when_a_renewal_is_due(fitness, release):
    assert decide(leader(), 105.0, fitness) == release


def test_after_a_release_for_cause_others_go_first():
    """A hung leader that comes back would otherwise win the lease it was to lose."""
    standby = watch((100.2, view(replace(THEIRS, state="released"))), state=released(leader(), 100.0, TIMING))
    assert isinstance(decide(standby, 109.9, FIT), Wait | Observe)
    assert isinstance(decide(standby, 110.0, FIT), Campaign)


# --- When a standby may take the lease


def test_a_held_lease_that_moves_is_left_alone():
    """However long it is watched."""
    standby = watch(*((100.0 + 2 * n, view(replace(THEIRS, seq=n))) for n in range(20)))
    assert standby.campaign is None


def test_lease_is_stale_only_after_the_holders_ttl_since_first_sight():
    """Counted from this replica's first sight of the number, on its own clock, by the holder's ttl."""
    slow = replace(THEIRS, ttl_ms=30_000)
    assert watch((100.0, view(slow)), (129.9, view(slow))).campaign is None
    assert watch((100.0, view(slow)), (130.0, view(slow))).campaign == Campaign(Expected(7, 3), TermStart.EXPIRED)


def test_lease_with_unreadable_ttl_is_waited_out_by_own_ttl():
    """Somebody has tampered with it."""
    silent = view(replace(THEIRS, ttl_ms=0))
    assert watch((100.0, silent), (109.9, silent)).campaign is None
    assert watch((100.0, silent), (110.0, silent)).campaign is not None


def test_a_single_look_never_makes_a_lease_stale():
    """A replica that starts knows nothing of how long the lease has stood so."""
    assert watch((1e9, view())).campaign is None


@pytest.mark.parametrize("change", [{"seq": 4}, {"epoch": 8}])
def test_renewal_or_acquisition_restarts_the_wait(change):
    """By a renewal or by another acquisition."""
    moved = view(replace(THEIRS, **change))
    assert watch((100.0, view()), (109.0, moved), (118.9, moved)).campaign is None
    assert watch((100.0, view()), (109.0, moved), (119.0, moved)).campaign is not None


def test_no_lease_and_a_released_one_are_free_at_once():
    """And the campaign says what it expects to find."""
    newcomer = Standby(unbroken=True)
    assert watch((100.0, view(None)), state=newcomer).campaign == Campaign(None, TermStart.NO_LEASE)
    free = watch((100.0, view(replace(THEIRS, state="released", reason=TermEnd.SHUTDOWN))))
    assert free.campaign == Campaign(Expected(7, 3), TermStart.RELEASED)


def test_a_holder_absent_once_is_not_dead():
    """It takes two looks, at least a poll apart."""
    seen = (99.9, view(subscribers=1))
    assert watch(seen, (100.0, view(subscribers=0))).campaign is None
    assert watch(seen, (100.0, view(subscribers=0)), (100.05, view(subscribers=0))).campaign is None
    dead = watch(seen, (100.0, view(subscribers=0)), (100.1, view(subscribers=0)))
    assert dead.campaign == Campaign(Expected(7, 3, absent=True), TermStart.LEADER_GONE)


@pytest.mark.parametrize(
    "second",
    [
        view(subscribers=1),
        view(replace(THEIRS, seq=4), subscribers=0),
        view(replace(THEIRS, epoch=8), subscribers=0),
        view(replace(THEIRS, presence="new"), subscribers=0),
        view(subscribers=0, run_id="another server"),
    ],
    ids=["back", "renewed", "another term", "another channel", "another server"],
)
def test_absence_counts_only_if_both_looks_agree(second):
    """A holder that reconnects, or a server that restarted, looks absent for a moment."""
    assert watch((99.9, view(subscribers=1)), (100.0, view(subscribers=0)), (100.1, second)).campaign is None


def test_absence_counts_only_after_presence_was_seen():
    """After an outage of Redis every channel is empty for a moment, also those of live replicas."""
    absent = ((100.0, view(subscribers=0)), (100.1, view(subscribers=0)))
    assert watch(*absent).campaign is None
    cut_off = absorb(watch((99.0, view(subscribers=1))), Unknown("no answer"), 99.5, TIMING)
    assert isinstance(cut_off, Standby)
    assert watch(*absent, state=cut_off).campaign is None


def test_newcomer_counts_absence_on_the_server_of_the_lease():
    """A replica that starts when its leader is dead already need not wait out the lease."""
    absent = [(now, view(replace(THEIRS, run_id="r"), subscribers=0)) for now in (100.0, 100.1)]
    newcomer = Standby(unbroken=True)
    assert watch(absent[0], state=newcomer).campaign is None
    dead = watch(*absent, state=newcomer).campaign
    assert dead == Campaign(Expected(7, 3, absent=True), TermStart.LEADER_GONE)


@pytest.mark.parametrize("failure", [Unknown("no answer"), Campaigned(Unknown("no answer"), "ours")])
def test_who_has_known_an_outage_is_no_newcomer(failure):
    """It emptied the channels of the living as well."""
    absent = [(now, view(replace(THEIRS, run_id="r"), subscribers=0)) for now in (100.0, 100.1)]
    after = absorb(Standby(unbroken=True), failure, 99.0, TIMING)
    assert isinstance(after, Standby)
    assert watch(*absent, state=after).campaign is None


def test_who_has_lost_its_own_presence_knows_of_no_death():
    """A proxy that is reloaded cuts all connections, the leader's as well, and that one may be slower to say so."""
    seen, gone = replace(THEIRS, run_id="r"), [(now, view(replace(THEIRS, run_id="r"), 0)) for now in (100.0, 100.1)]
    for state in (watch((99.0, view(seen, 1))), Standby(unbroken=True)):
        assert watch(*gone, state=state).campaign is not None
        cut_off = absorb(state, PresenceBroke(), 99.5, TIMING)
        assert isinstance(cut_off, Standby)
        assert watch(*gone, state=cut_off).campaign is None


def test_newcomer_ignores_absence_on_an_unknown_server():
    """Without the right to ask for the run id."""
    for lease, server in [("", ""), ("r", ""), ("", "r")]:
        absent = [(now, view(replace(THEIRS, run_id=lease), subscribers=0, run_id=server)) for now in (100.0, 100.1)]
        assert watch(*absent, state=Standby(unbroken=True)).campaign is None


def test_absence_on_another_server_does_not_count():
    """A failover or a restart empties every channel; a connection made anew in silence would not show as an outage."""
    held = replace(THEIRS, run_id="before")
    seen = (99.9, view(held, subscribers=1))
    empty = [(100.0 + n / 10, view(held, subscribers=0, run_id="after")) for n in range(5)]
    assert watch(seen, *empty).campaign is None
    assert watch(seen, *((now, view(held, subscribers=0, run_id="before")) for now, _ in empty)).campaign is not None
    # The wait for the ttl goes on meanwhile.
    assert watch(seen, *empty, (109.9, view(held, subscribers=0, run_id="after"))).campaign is not None


def test_after_an_outage_longer_than_the_lease_its_holder_goes_first():
    """Others would have to wait on the new server, from first contact on, until the holder must have stopped."""
    held = replace(THEIRS, run_id="before")
    after = view(held, subscribers=0, run_id="after")
    back = 100.0 + 3 * TIMING.ttl
    waits = watch((99.9, view(held)), (back, after), (back + TIMING.courtesy - 0.1, after))
    assert waits.campaign is None
    assert watch((back + TIMING.courtesy, after), state=waits).campaign is not None
    holder = Standby(nonces=(THEIRS.nonce,))
    assert watch((back, after), state=holder).campaign is not None


def test_a_short_lease_is_not_left_to_its_holder_for_longer_than_it_lasts():
    timing = replace(TIMING, ttl=1.0)
    held = replace(THEIRS, run_id="before", ttl_ms=1000)
    state = Standby()
    for now in (100.0, 101.0):
        after = absorb(state, view(held, subscribers=0, run_id="after"), now, timing)
        assert isinstance(after, Standby)
        state = after
    assert state.campaign is not None


def test_unknown_presence_is_not_absence():
    """A proxy without it, or a holder that never registered: only the ttl counts."""
    assert watch(*((100.0 + n / 10, view(subscribers=-1)) for n in range(50))).campaign is None


def test_lease_of_a_lost_acquire_reply_is_free_for_its_owner():
    """The record names the nonce of this replica's last attempt."""
    after = absorb(Standby(), Campaigned(Unknown("timeout"), "ours"), 100.0, TIMING)
    assert isinstance(after, Standby)
    named = replace(THEIRS, holder="we", nonce="ours")
    found = watch((100.1, view(named)), state=after)
    assert found.campaign.reason is TermStart.OWN_LEASE


def test_lease_of_an_earlier_late_campaign_is_free_for_its_owner():
    """Two campaigns were lost on the way; the first of them arrives after the second."""
    state = Standby()
    for nonce in ("first", "second"):
        state = absorb(state, Campaigned(Unknown("timeout"), nonce), 100.0, TIMING)
    state = absorb(state, Campaigned(Refused("the lease has moved"), "third"), 100.0, TIMING)
    assert isinstance(state, Standby)
    found = watch((100.1, view(replace(THEIRS, holder="we", nonce="first"))), state=state)
    assert found.campaign is not None
    assert watch((100.1, view(THEIRS)), state=state).campaign is None


def test_campaigns_of_unknown_outcome_are_not_remembered_without_end():
    """A Redis that answers looks and hangs on writes, for days."""
    state = Standby()
    for number in range(1000):
        state = absorb(state, Campaigned(Unknown("timeout"), str(number)), 100.0, TIMING)
    assert isinstance(state, Standby)
    assert len(state.nonces) < 100
    assert state.nonces[-1] == "999"


def test_a_leader_whose_election_failed_leaves_its_lease_to_others():
    """Otherwise a fault of this replica alone would end each of its terms, and no other replica would lead."""
    after = failed(leader(), 101.0, TIMING)
    assert after.seen_epoch == OURS.epoch
    assert watch((101.1, view(replace(THEIRS, holder="we", nonce="ours"))), state=after).campaign is None


def test_a_refused_campaign_looks_again_before_it_campaigns_again():
    """Its expectation is outdated."""
    free = watch((100.0, view(replace(THEIRS, state="released"))))
    after = absorb(free, Campaigned(Refused("the lease has moved"), "ours"), 100.0, TIMING)
    assert isinstance(decide(after, 100.0, FIT), Wait)
    assert decide(after, 100.1, FIT) == Observe()


def test_stalled_replica_does_not_campaign():
    """It would win a lease that it has to give back."""
    free = watch((100.0, view(replace(THEIRS, state="released"))))
    assert isinstance(decide(free, 100.0, FIT), Campaign)
    assert not isinstance(decide(free, 100.0, Fitness(stalled=True)), Campaign)


def test_the_highest_epoch_seen_is_never_forgotten():
    """The next acquisition has to be above it even where Redis has lost it."""
    standby = watch((100.0, view(replace(THEIRS, epoch=99))), (100.1, view(None)), (100.2, view(THEIRS)))
    assert standby.seen_epoch == 99


def test_a_replica_that_must_not_lead_waits_long_between_tries():
    """Foreign app, newer schema: no hurry, but an operator may have mended it."""
    free = watch((100.0, view(None)))
    after = absorb(free, Forbidden(ForbiddenReason.OTHER_APP, ""), 100.0, TIMING)
    again = watch((100.2, view(None)), state=after)
    assert not isinstance(decide(again, 109.9, FIT), Campaign)
    assert isinstance(decide(again, 110.0, FIT), Campaign)


def test_a_wake_message_makes_a_standby_look_now_and_a_leader_do_nothing():
    """Handover after a release needs no poll."""
    waiting = Standby(next_poll=200.0)
    assert decide(waiting, 100.0, FIT) == Wait(200.0)
    assert decide(absorb(waiting, Woken(), 100.0, TIMING), 100.0, FIT) == Observe()
    assert absorb(leader(), Woken(), 100.0, TIMING) == leader()


def test_an_unreachable_store_is_polled_no_faster_than_a_good_one():
    """Nothing in an outage hurries."""
    after = absorb(Standby(), Unknown("refused"), 100.0, TIMING)
    assert decide(after, 100.05, FIT) == Wait(100.1)


# --- Presence of the leader


def test_when_presence_breaks_the_leader_renews_at_once_without_it():
    """Before a standby sees the dead channel twice."""
    after = absorb(leader(), PresenceBroke(), 101.0, TIMING)
    assert isinstance(after, Leader)
    assert after.presence == ""
    assert isinstance(decide(after, 101.0, FIT), Renew)


def test_a_new_presence_connection_is_registered_at_once():
    """And one that is registered already changes nothing."""
    bare = leader(presence="")
    assert isinstance(decide(absorb(bare, PresenceReady(), 101.0, TIMING), 101.0, FIT), Renew)
    assert absorb(leader(), PresenceReady(), 101.0, TIMING) == leader()


def test_presence_that_keeps_breaking_is_done_without_for_a_while():
    """Or each break would put the lease at risk."""
    state = leader(term=OURS.until(1e9))
    for n in range(PRESENCE_LOSSES):
        state = absorb(state, PresenceBroke(), 101.0 + n, TIMING)
    last = 101.0 + PRESENCE_LOSSES - 1
    during, after = decide(state, last + 59.0, FIT), decide(state, last + 61.0, FIT)
    assert isinstance(during, Renew)
    assert isinstance(after, Renew)
    assert (during.presence, after.presence) == (False, True)


@pytest.mark.parametrize("state", [Standby(), leader()])
def test_standby_leads_only_after_an_acquisition(state):
    """Every other outcome, at any time, leaves a standby a standby, and never lengthens trust."""
    others = [
        view(),
        view(None),
        Campaigned(Refused("no"), "n"),
        Campaigned(Unknown("no"), "n"),
        Renewal(Lost("no"), 100.0),
        Renewal("late", 1e6),
        Unknown("no"),
        PresenceBroke(),
        PresenceReady(),
        Fenced("ours", "no"),
        Forbidden(ForbiddenReason.OTHER_APP, ""),
        Woken(),
    ]
    for outcome in others:
        after = absorb(state, outcome, 101.0, TIMING)
        if isinstance(state, Standby):
            assert isinstance(after, Standby), outcome
        elif isinstance(after, Leader):
            assert after.term == state.term, outcome


def test_a_renewal_that_arrives_at_a_standby_does_not_make_it_lead():
    """It gave up while the answer was under way."""
    assert isinstance(absorb(Standby(), renewed(100.0), 100.1, TIMING), Standby)


def test_a_preferred_replica_goes_first_and_the_others_soon_after():
    """A step-down in favour of one holds the others back for a moment only; even a bar does not hold that one back."""
    record = LeaseRecord(holder="a", epoch=5, nonce="n", seq=3, ttl_ms=10_000, state="released", preferred="b")
    standby = Standby(barred_until=200.0)
    seen = absorb(standby, LeaseView(record, -1, 0, ""), 100.0, Timing())
    assert isinstance(decide(seen, 100.0, Fitness(replica="b")), Campaign)
    assert not isinstance(decide(seen, 100.0, Fitness(replica="c")), Campaign)
    free = absorb(Standby(), LeaseView(record, -1, 0, ""), 100.0, Timing())
    assert not isinstance(decide(free, 100.5, Fitness(replica="c")), Campaign)
    assert isinstance(decide(free, 101.0, Fitness(replica="c")), Campaign)
    assert not isinstance(decide(seen, 101.0, Fitness(replica="b")), Campaign)


def test_a_redis_that_does_not_answer_is_asked_less_and_less_often():
    """A standby's attempts spread to one a second, and are as close as ever once Redis answers."""
    state, now, asked = Standby(), 0.0, []
    while now < 60.0:
        state = absorb(state, Unknown("refused"), now, TIMING)
        asked.append(round(state.next_poll - now, 6))
        now = state.next_poll
    assert asked[0] == pytest.approx(TIMING.poll_interval)
    assert asked == sorted(asked)
    assert asked[-1] == pytest.approx(TIMING.longest_backoff)
    assert len(asked) < 80
    state = absorb(state, view(), now, TIMING)
    assert state.next_poll - now == pytest.approx(TIMING.poll_interval)
    assert absorb(state, Unknown("refused"), now, TIMING).next_poll - now == pytest.approx(TIMING.poll_interval)


def test_campaigns_refused_by_a_read_only_redis_back_off():
    """Reading the free lease in between does not make a refused campaign count as the first."""
    state, now, campaigns = Standby(), 0.0, 0
    while now < 60.0:
        state = absorb(state, view(None, -1), now, TIMING)
        assert isinstance(decide(state, now, Fitness()), Campaign)
        campaigns += 1
        state = absorb(state, Campaigned(Unknown("READONLY"), "n"), now, TIMING)
        now = state.next_poll
    assert campaigns < 80
