"""Times of outages: what is in doubt after a takeover, and how long to wait, count from them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.elector import Elector
from ha_beat.election.leader_handle import Tenure
from ha_beat.election.state_machine import Timing
from ha_beat.store.lease import Replica
from ha_beat.testing import MemoryLeaseStore, MemoryPresence, SettableClock

TIMING = Timing(ttl=10.0, renew_interval=2.5, poll_interval=0.1, stall_timeout=15.0)


class Bench:
    """One elector in one thread, on a server that a test can stop, restart and empty."""

    def __init__(self) -> None:
        self.clock = SettableClock()
        self.store = MemoryLeaseStore(self.clock)
        self.time = SchedulingTime(self.clock, lambda _: None)
        replica = Replica("one", "host", 1, "0", "app")
        presence = MemoryPresence(self.store, self.clock)
        self.elector = Elector(self.store, presence, replica, TIMING, self.clock, lambda _: None, self.time)

    def run(self, seconds: float) -> None:
        until = self.clock.elapsed() + seconds
        while self.clock.elapsed() < until:
            self.clock.advance(0.01)
            self.elector.handle.progress()
            self.elector._step()

    @property
    def tenure(self) -> Tenure:
        assert self.elector.handle.term is not None
        assert self.elector.handle.tenure is not None
        return self.elector.handle.tenure

    def ago(self) -> float:
        """Seconds since the last server was found to be out of reach."""
        assert self.tenure.contact_lost is not None
        return (self.time.now() - self.tenure.contact_lost) / timedelta(seconds=1)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.run(5)
    return made


def test_a_replica_that_never_lost_contact_has_none_to_tell_of(bench: Bench):
    assert bench.tenure.contact_lost is None
    assert bench.tenure.contact_since is None


@pytest.mark.parametrize("away", [3.0, 30.0])
def test_after_an_outage_contact_ended_before_it_and_began_with_its_end(bench: Bench, away):
    """What fell due meanwhile is not in doubt; and waiting for the lease counts for the wait on another server."""
    left = bench.clock.elapsed()
    bench.store.reachable = False
    bench.run(away)
    bench.store.restart()
    bench.store.reachable = True
    back = bench.clock.elapsed()
    bench.run(4)
    since = bench.clock.elapsed() - left
    assert since - TIMING.renew_interval - 0.5 <= bench.ago() <= since
    assert bench.tenure.contact_since == pytest.approx(back, abs=TIMING.renew_interval)


def test_a_server_that_changed_unseen_is_lost_at_the_acquisition(bench: Bench):
    """No command fell into the change: all until now may be in doubt, rather than nothing."""
    bench.store.restart()
    began = bench.clock.elapsed()
    bench.run(4)
    assert bench.ago() <= bench.clock.elapsed() - began + TIMING.renew_interval + 0.5
