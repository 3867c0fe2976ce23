"""Absence of the holder: when a standby may take a live lease over, and when an empty channel proves nothing."""

from dataclasses import replace

import pytest

from ha_beat.election.states import (
    Campaign,
    Campaigned,
    PresenceBroke,
    Standby,
    Unknown,
)
from ha_beat.reasons import TermStart
from ha_beat.store.lease import Expected
from tests.unit.election.machine import NEWCOMER, THEIRS, TIMING, absent, absorb, held, view, watch

GONE = Campaign(Expected(7, 3, absent=True), TermStart.LEADER_GONE)

#: Two looks on the server that the lease names.
LOOKS = [(100.0, absent(run_id="r")), (100.1, absent(run_id="r"))]


def test_holder_absent_once_is_not_dead():
    once = watch((99.9, view()), (100.0, absent()))
    assert once.campaign is None
    assert watch((100.05, absent()), state=once).campaign is None
    assert watch((100.1, absent()), state=once).campaign == GONE


@pytest.mark.parametrize(
    "second",
    [view(), absent(seq=4), absent(epoch=8), absent(presence="new"), absent("another server")],
    ids=["back", "renewed", "another term", "another channel", "another server"],
)
def test_absence_counts_only_if_both_looks_agree(second):
    """A holder that reconnects, or a server that restarted, looks absent for a moment."""
    assert watch((99.9, view()), (100.0, absent()), (100.1, second)).campaign is None


def test_absence_counts_only_after_presence_was_seen():
    """After an outage of Redis every channel is empty for a moment, also those of live replicas."""
    looks = ((100.0, absent()), (100.1, absent()))
    assert watch(*looks).campaign is None
    assert watch(*looks, state=absorb(watch((99.0, view())), Unknown("no answer"), 99.5)).campaign is None


def test_newcomer_counts_absence_on_the_server_of_the_lease():
    """A replica that starts after its leader died need not wait for the ttl."""
    assert watch(LOOKS[0], state=NEWCOMER).campaign is None
    assert watch(*LOOKS, state=NEWCOMER).campaign == GONE


@pytest.mark.parametrize("failure", [Unknown("no answer"), Campaigned(Unknown("no answer"), "ours")])
def test_replica_that_saw_an_outage_is_no_newcomer(failure):
    """The outage also emptied the channels of live replicas."""
    assert watch(*LOOKS, state=absorb(NEWCOMER, failure, 99.0)).campaign is None


def test_replica_that_lost_its_presence_ignores_absence():
    """A reloaded proxy cuts all connections, and the leader may be slower to report it."""
    for state in (watch((99.0, held(run_id="r"))), NEWCOMER):
        assert watch(*LOOKS, state=state).campaign is not None
        assert watch(*LOOKS, state=absorb(state, PresenceBroke(), 99.5)).campaign is None


@pytest.mark.parametrize(("lease", "server"), [("", ""), ("r", ""), ("", "r")])
def test_newcomer_ignores_absence_on_an_unknown_server(lease, server):
    """It may lack the right to read the run id."""
    assert watch(*((now, absent(server, run_id=lease)) for now in (100.0, 100.1)), state=NEWCOMER).campaign is None


def test_absence_on_another_server_does_not_count():
    """A failover or a restart empties every channel, and a silent reconnection does not show as an outage."""
    seen = watch((99.9, held(run_id="before")))
    times = [100.0 + n / 10 for n in range(5)]
    empty = watch(*((now, absent("after", run_id="before")) for now in times), state=seen)
    assert empty.campaign is None
    assert watch(*((now, absent("before", run_id="before")) for now in times), state=seen).campaign is not None
    # The ttl still counts from the first sight.
    assert watch((109.9, absent("after", run_id="before")), state=empty).campaign is not None


def test_after_an_outage_longer_than_the_lease_its_holder_goes_first():
    """Another replica would have to wait on the new server until the holder must have stopped."""
    after, back = absent("after", run_id="before"), 100.0 + 3 * TIMING.ttl
    waits = watch((99.9, held(run_id="before")), (back, after), (back + TIMING.preference_wait - 0.1, after))
    assert waits.campaign is None
    assert watch((back + TIMING.preference_wait, after), state=waits).campaign is not None
    assert watch((back, after), state=Standby(nonces=(THEIRS.nonce,))).campaign is not None


def test_short_lease_is_left_to_its_holder_for_its_ttl_at_most():
    timing, look = replace(TIMING, ttl=1.0), view(replace(THEIRS, run_id="before", ttl_ms=1000), 0, "after")
    assert absorb(absorb(Standby(), look, 100.0, timing), look, 101.0, timing).campaign is not None


def test_unknown_presence_is_not_absence():
    """Only the ttl counts if a proxy does not know the command, or if the holder never registered."""
    assert watch(*((100.0 + n / 10, view(subscribers=-1)) for n in range(50))).campaign is None
