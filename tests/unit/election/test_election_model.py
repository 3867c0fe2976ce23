"""Promises of the election in simulated time under faults, and the guards that they need."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ha_beat.election.states import Timing
from ha_beat.store.lease import Expected
from ha_beat.testing import MemoryLeaseStore
from tests.guards import WATCHED
from tests.unit.election.simulation import CLOCK_ERROR, COMMAND_TIMEOUT, FAULTS_UNTIL, LONGEST_DELAY, TIMING, Simulation

SEEDS = st.integers(0, 2**32)
reproducible = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

#: After the last fault: a command under way lands, is watched for a ttl by a slow clock, and is taken over.
RECOVERY = LONGEST_DELAY + 1.1 * TIMING.ttl + 4 * TIMING.poll_interval + 2 * COMMAND_TIMEOUT


@reproducible
@given(seed=SEEDS, often=st.booleans())
def test_at_most_one_replica_trusts_its_term(seed, often):
    """Without presence, trust alone is exclusive: lost, late and delayed commands, pauses, crashes, bad clocks."""
    run = Simulation(seed, presence=False, timing=replace(TIMING, poll_interval=0.05) if often else TIMING).run(
        FAULTS_UNTIL
    )
    assert run.violations == []
    assert len(run.leaders) > 1, "nothing happened in this run"


@reproducible
@given(seed=SEEDS)
def test_with_presence_at_most_one_term_is_accepted(seed):
    """A leader that was cut off is replaced before its trust ends, and the store refuses it from then on."""
    assert Simulation(seed, presence=True).run(FAULTS_UNTIL).violations == []


@reproducible
@given(seed=SEEDS, presence=st.booleans())
def test_after_the_faults_one_replica_leads_and_keeps_leading(seed, presence):
    run = Simulation(seed, presence=presence).run(FAULTS_UNTIL + 6.0 + RECOVERY)
    leader = run.leader()
    assert leader is not None
    changes = len(run.leaders)
    run.run(run.time.now + 4 * TIMING.ttl)
    assert run.leader() is leader
    assert len(run.leaders) == changes


def test_dead_leader_is_replaced_within_two_polls_with_presence():
    for presence, earliest, latest in ((True, 0.0, 4 * TIMING.poll_interval), (False, 3.0, 1.1 * TIMING.ttl + 1.0)):
        run = Simulation(1, presence=presence, faults=False).run(20.0)
        leader = run.leader()
        run.store.subscribed.discard(leader.channel)
        leader.life, leader.down = leader.life + 1, True
        while run.leader() is None and run.time.now < 40.0:
            run.run(run.time.now + 0.05)
        assert earliest <= run.time.now - 20.0 <= latest


class NoMargin(Timing):
    @property
    def margin(self) -> float:
        return 0.0

    @property
    def longest_backoff(self) -> float:
        return self.poll_interval


class NoComparison(MemoryLeaseStore):
    """Store that gives the lease away even if it changed since it was seen free."""

    def _has_moved(self, expected: Expected | None) -> bool:
        return False


class NoEpochFloor(MemoryLeaseStore):
    """Store that counts epochs from 1, and forgets them with the record."""

    def acquire(self, attempt, expected, seen_epoch):
        self._ledger_epoch = 0
        self._now_ms = lambda: 0
        return super().acquire(attempt, expected, 0)


class AnyNumberAgain(MemoryLeaseStore):
    """Store that renews for an attempt whose number the lease already has."""

    def renew(self, term, seq, presence):
        if self.record is not None and self.record.seq == seq:
            self.record = replace(self.record, seq=seq - 1)
            answer = super().renew(term, seq, presence)
            self.record = replace(self.record, seq=seq)
            return answer
        return super().renew(term, seq, presence)


#: With few polls, the time between two of them would be enough margin.
OFTEN = replace(TIMING, poll_interval=0.05)
NO_MARGIN = NoMargin(OFTEN.ttl, OFTEN.renew_interval, OFTEN.poll_interval, OFTEN.stall_timeout)


@pytest.mark.parametrize(("timing", "holds"), [(OFTEN, True), (NO_MARGIN, False)], ids=["with", "without"])
def test_margin_covers_a_slow_leader_and_a_fast_standby(timing, holds):
    """The leader is cut off between two renewals. Without the margin its trust lasts too long."""
    violations = []
    for moment in range(8):
        run = Simulation(moment, presence=False, timing=timing, faults=False)
        for node in run.nodes:
            node.rate = 1 + CLOCK_ERROR
        run.run(8.0 + moment * TIMING.renew_interval / 8)
        leader = run.leader()
        # Its clock slows down from where it stands.
        leader.offset += run.time.now * (leader.rate - (1 - CLOCK_ERROR))
        leader.rate, leader.cut_off_until = 1 - CLOCK_ERROR, 30.0
        run.run(20.0)
        assert run.leader() not in (None, leader)
        violations += run.violations
    assert (violations == []) is holds


@pytest.mark.parametrize(
    "without", [{"trust_from_send": False}, {"store": NoComparison}], ids=["trust from the send", "compare-and-set"]
)
def test_simulation_finds_the_fault_if_a_guard_is_missing(without):
    """A simulation that cannot fail would show nothing."""
    for seed in range(30, 230):
        if Simulation(seed, presence=False, **without).run(FAULTS_UNTIL).violations:
            return
    pytest.fail("no run broke a promise")


def test_two_replicas_trust_their_terms_if_a_number_is_reused(monkeypatch):
    """The standby counts from the first attempt that it saw, the leader from the second, whose number is the same."""
    MUTANT.apply(monkeypatch.setattr)
    for seed in range(100, 300):
        violations = Simulation(seed, presence=False, store=AnyNumberAgain).run(FAULTS_UNTIL).violations
        if violations:
            assert "trust their terms" in violations[0]
            return
    pytest.fail("no run broke a promise")


#: An attempt of unknown outcome is repeated under its number.
MUTANT = next(guard.mutant for guard in WATCHED if guard.name == "election: each renewal attempt has a new number")


@pytest.mark.parametrize(("store", "rises"), [(MemoryLeaseStore, True), (NoEpochFloor, False)])
def test_epochs_rise_even_if_redis_loses_its_state(store, rises):
    """The floor is the server's time and what the replicas have seen. Without it they fall back to 1."""
    run = Simulation(3, presence=False, store=store, faults=False)
    for _ in range(4):
        run.run(run.time.now + 20.0)
        run.store.lose_state()
    run.run(run.time.now + 20.0)
    assert len(run.epochs) >= 5
    assert ([violation for violation in run.violations if "epoch" in violation] == []) is rises
