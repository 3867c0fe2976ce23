"""Election thread: its reaction to faults, none of which ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from unittest.mock import Mock

import pytest

from ha_beat import events
from ha_beat.election.elector import Elector, Eligibility
from ha_beat.election.leader_handle import LeaderHandle
from ha_beat.election.state_machine import Leader, Standby, Timing
from ha_beat.errors import ForeignApp, StoreUnavailable
from ha_beat.reasons import ForbiddenReason, TermEnd, TermStart
from ha_beat.store.lease import Term
from ha_beat.store.presence import Presence, PresenceError
from ha_beat.testing import MemoryLeaseStore, MemoryPresence, SettableClock
from tests.support.events import EventLog
from tests.support.leases import replica
from tests.support.servers import wait_for

TIMING = Timing(ttl=10.0, renew_interval=2.5, poll_interval=0.1, stall_timeout=15.0)
E = TypeVar("E", bound=events.Event)


class Bench:
    """Electors in one thread, on a clock that moves only as they wait."""

    def __init__(self) -> None:
        self.clock = SettableClock()
        self.store = MemoryLeaseStore(self.clock)
        self.told: list[events.Event] = []
        self.electors: list[Elector] = []

    def elector(self, name: str = "one", *, remembers: bool = True, presence: Presence | None = None) -> Elector:
        made = Elector(
            self.store,
            presence or MemoryPresence(self.store, self.clock),
            replica(name),
            TIMING,
            self.clock,
            self.told.append,
            eligibility=Eligibility(remembers=lambda: remembers),
        )
        self.electors.append(made)
        return made

    def run(self, seconds: float, *stalled: Elector) -> None:
        """Step all electors for some seconds. The main loops make progress, except those of ``stalled``."""
        until = self.clock.elapsed() + seconds
        while self.clock.elapsed() < until:
            self.clock.advance(0.01)
            for elector in self.electors:
                if elector not in stalled:
                    elector.handle.progress()
                elector._step()

    def leader(self) -> Elector | None:
        leading = [elector for elector in self.electors if elector.handle.term is not None]
        return leading[0] if leading else None

    def heard(self, kind: type[E]) -> list[E]:
        return [event for event in self.told if isinstance(event, kind)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_standbys_report_the_leader_once(bench: Bench):
    """One report for each change of leader, not for each poll."""
    one, two, three = (bench.elector(name) for name in ("one", "two", "three"))
    bench.run(60)
    assert [elector.handle.term is not None for elector in (one, two, three)] == [True, False, False]
    assert len(bench.heard(events.TermStarted)) == 1
    assert [event.holder for event in bench.heard(events.LeaderSeen)] == ["one", "one"]
    assert bench.heard(events.TermEnded) == []


def test_hung_main_loop_loses_the_lease(bench: Bench):
    """It is released within the stall timeout, and the hung replica does not take it back."""
    one, two = bench.elector("one"), bench.elector("two")
    bench.run(5)
    assert bench.leader() is one
    bench.run(TIMING.stall_timeout + 0.5, one)
    assert bench.leader() is two
    assert [event.reason for event in bench.heard(events.TermEnded)] == [TermEnd.STALLED]
    bench.run(60, one)
    assert bench.leader() is two


def test_only_replica_leads_again_after_a_hang(bench: Bench):
    """A slow turn must not end its leadership for good."""
    one = bench.elector("one")
    bench.run(5)
    bench.run(30, one)
    assert one.handle.term is None
    bench.run(TIMING.ttl + 1)
    assert one.handle.term is not None


def test_step_down_hands_over_and_bars_the_old_leader(bench: Bench):
    """Otherwise the old leader would win the race for the lease that it released."""
    one, two = bench.elector("one"), bench.elector("two")
    bench.run(5)
    one.handle.step_down(TermEnd.STEP_DOWN, detail="ann")
    bench.run(0.5)
    assert bench.leader() is two
    bench.run(60)
    assert bench.leader() is two
    assert bench.heard(events.TermStarted)[-1].reason is TermStart.RELEASED
    ended = bench.heard(events.TermEnded)[-1]
    assert (ended.reason, ended.detail) == (TermEnd.STEP_DOWN, "ann")


def test_lost_acquire_reply_delays_the_term_by_less_than_a_ttl(bench: Bench):
    """The record has the nonce of this replica's attempt, so it may campaign again at once."""
    one = bench.elector("one")
    real = bench.store.acquire

    def acquire(*args: Any) -> Any:
        bench.store.lose_replies = True
        try:
            return real(*args)
        finally:
            bench.store.lose_replies = False
            bench.store.acquire = real

    bench.store.acquire = acquire
    while bench.store.record is None:
        bench.run(0.01)
    assert one.handle.term is None
    lost = bench.store.record.epoch
    bench.run(1.0)
    assert one.handle.term.epoch > lost
    assert bench.heard(events.TermStarted)[-1].reason is TermStart.OWN_LEASE


def test_leader_without_redis_stops_and_leads_again_after_the_outage(bench: Bench):
    """The outage and its end are reported once each."""
    one = bench.elector("one")
    bench.run(5)
    began = bench.clock.elapsed()
    bench.store.reachable = False
    while one.handle.term is not None and bench.clock.elapsed() < began + 20:
        bench.run(0.1)
    assert TIMING.ttl - TIMING.margin - TIMING.renew_interval - 0.2 < bench.clock.elapsed() - began <= TIMING.ttl
    bench.run(30)
    assert one.handle.term is None
    bench.store.reachable = True
    bench.run(TIMING.ttl + 1)
    assert one.handle.term is not None
    assert len(bench.heard(events.LeaseUnreachable)) == 1
    assert len(bench.heard(events.LeaseReachable)) == 1


def test_replica_that_remembers_lost_state_campaigns_first(bench: Bench):
    """A replica that started during the outage would take it for a first start, and repeat occurrences."""
    one = bench.elector("one")
    bench.run(5)
    assert one.handle.term is not None
    bench.store.reachable = False
    bench.run(30)
    bench.elector("newcomer", remembers=False)
    bench.run(1)
    bench.electors.reverse()
    bench.store.lose_state()
    bench.store.reachable = True
    bench.run(10)
    assert bench.leader() is one


def test_newcomer_leads_if_no_replica_remembers_state(bench: Bench):
    """At a first start at once, and if Redis starts later a moment after it."""
    first = bench.elector("first", remembers=False)
    bench.run(0.5)
    assert bench.leader() is first
    first.close(lambda term: bench.store.release(term, TermEnd.SHUTDOWN))
    bench.electors.remove(first)
    bench.store.lose_state()
    bench.store.reachable = False
    second = bench.elector("second", remembers=False)
    bench.run(10)
    bench.store.reachable = True
    bench.run(TIMING.courtesy + TIMING.longest_backoff + 0.5)
    assert bench.leader() is second


def test_lost_renewal_replies_do_not_extend_trust(bench: Bench):
    """The server renewed the lease, but no reply arrived: the leader must stop."""
    one = bench.elector("one")
    bench.run(5)
    bench.store.lose_replies = True
    bench.run(TIMING.ttl)
    assert one.handle.term is None


def test_fenced_dispatch_ends_the_term(bench: Bench):
    """The term ends before the election thread reads the fence, so no work happens in between."""
    one = bench.elector("one")
    bench.run(5)
    term = one.handle.term
    assert term is not None
    one.handle.fenced(term, TermEnd.SUPERSEDED)
    assert one.handle.term is None
    one._step()
    assert isinstance(one.state, Standby)
    assert bench.heard(events.TermEnded)[-1].reason is TermEnd.SUPERSEDED


def test_fence_set_while_the_elector_reads_it_is_kept(bench: Bench):
    """Otherwise the replica would renew the lease and enqueue nothing."""
    one = bench.elector("one")
    bench.run(5)
    term = one.handle.term
    assert term is not None

    class Interrupted(LeaderHandle):
        """The main loop gets its turn between the elector's look and what it does next."""

        @property
        def _fenced(self) -> Any:
            found = self.__dict__.get("fence")
            if found is None and self._term is not None:
                self.fenced(term, TermEnd.SUPERSEDED)
            return found

        @_fenced.setter
        def _fenced(self, fence: Any) -> None:
            self.__dict__["fence"] = fence

    del one.handle.__dict__["_fenced"]
    one.handle.__class__ = Interrupted
    one._step()
    one._step()
    assert isinstance(one.state, Standby)


def test_fence_of_an_older_term_does_not_end_this_one(bench: Bench):
    """The refused work was sent before the lease was lost and acquired again."""
    one = bench.elector("one")
    bench.run(5)
    term = one.handle.term
    assert term is not None
    one.handle.step_down(TermEnd.STEP_DOWN, detail="ann")
    bench.run(TIMING.ttl + 1)
    assert one.handle.term is not None
    one.handle.fenced(term, TermEnd.SUPERSEDED)
    bench.run(0.2)
    assert one.handle.term is not None


def test_next_renewal_notices_a_lost_lease(bench: Bench):
    """After FLUSHALL the leader stops, and starts a new term on new state."""
    one = bench.elector("one")
    bench.run(5)
    before = one.handle.term
    bench.store.lose_state()
    bench.run(TIMING.renew_interval + 0.5)
    assert (one.handle.term.gen != before.gen, one.handle.term.epoch > before.epoch) == (True, True)


def test_replica_of_another_app_never_leads_and_reports_it_once(bench: Bench):
    """Every campaign is refused."""
    one = bench.elector("one")
    bench.store._fingerprint = "another app"
    bench.run(60)
    assert one.handle.term is None
    assert [event.reason for event in bench.heard(events.LeadingForbidden)] == [ForbiddenReason.OTHER_APP]


def test_close_releases_the_term_and_can_be_repeated(bench: Bench):
    """Celery calls it in a signal handler and once more."""
    one = bench.elector("one")
    bench.run(5)
    released: list[Term] = []
    for _ in range(3):
        one.close(released.append)
    assert len(released) >= 1
    assert {term.nonce for term in released} == {released[0].nonce}
    assert one.handle.term is None


def test_lease_acquired_during_close_is_released(bench: Bench):
    """SIGTERM arrived before the reply. No thread would renew that lease."""
    one = bench.elector("one")
    real = bench.store.acquire

    def acquire(*args: Any) -> Any:
        one.close(lambda _: None)
        return real(*args)

    bench.store.acquire = acquire
    bench.run(2)
    assert one.handle.term is None
    assert not bench.store.record.held


def test_close_during_a_renewal_reports_no_lost_term(bench: Bench):
    """The shutdown is logged by its caller, and must not look like a lost lease."""
    one = bench.elector("one")
    bench.run(5)
    real = bench.store.renew

    def renew(*args: Any) -> Any:
        answer = real(*args)
        one.close(lambda term: bench.store.release(term, TermEnd.SHUTDOWN))
        return answer

    bench.store.renew = renew
    bench.run(TIMING.renew_interval + 0.1)
    assert not bench.store.record.held
    assert bench.heard(events.TermEnded) == []


def test_presence_failure_is_reported_at_the_second_attempt(bench: Bench):
    """In an outage of Redis the presence connection fails first. That must not make a second warning."""
    presence: Any = MemoryPresence(bench.store, bench.clock)
    bench.elector("one", presence=presence)
    real = presence.open

    def broken() -> None:
        raise PresenceError("cut")

    presence.open = broken
    bench.run(0.5)
    assert bench.heard(events.PresenceUnavailable) == []
    bench.run(20)
    assert len(bench.heard(events.PresenceUnavailable)) == 1
    presence.open = real
    bench.run(2)
    presence.close()
    presence.open = broken
    bench.run(0.5)
    assert len(bench.heard(events.PresenceUnavailable)) == 1


# --- Thread


@contextmanager
def running(emit: Callable[[events.Event], None]) -> Iterator[tuple[MemoryLeaseStore, Elector]]:
    """Run the thread of an elector whose clock advances as it waits, until it leads."""
    clock = SettableClock()
    store = MemoryLeaseStore(clock)
    elector = Elector(store, MemoryPresence(store, clock), replica(), replace(TIMING, stall_timeout=1e12), clock, emit)
    elector.start()
    try:
        wait_for(lambda: elector.handle.term, 10, "a first term")
        yield store, elector
    finally:
        elector.close(lambda _: None)


@pytest.mark.parametrize("method", ["observe", "acquire", "renew"])
@pytest.mark.parametrize("error", [ValueError("bug"), MemoryError(), StoreUnavailable("x"), OSError(5)])
def test_exception_ends_the_term_and_not_the_thread(method, error, monkeypatch):
    told = EventLog()
    with running(told.append) as (store, elector):
        with monkeypatch.context() as patch:
            patch.setattr(store, method, Mock(side_effect=error))
            if method != "renew":
                store.lose_state()
            wait_for(lambda: told.of(events.TermEnded), 10, "the end of the term")
            time.sleep(0.05)  # many times the lease on the elector's clock
            if method != "renew":
                assert elector.handle.term is None
        wait_for(lambda: elector.handle.term, 15, "another term")
        assert elector.handle.running
    assert bool(told.of(events.ElectionFailed)) is not isinstance(error, StoreUnavailable)


def test_failing_subscriber_does_not_cost_the_lease():
    hub = events.Events()
    hub.subscribe(Mock(side_effect=RuntimeError("broken subscriber")))
    with running(hub.emit) as (store, elector):
        epoch = store.record.epoch
        time.sleep(0.05)
        assert elector.handle.term.epoch == epoch


def test_forbidden_replica_keeps_its_thread_and_does_not_lead(monkeypatch):
    told = EventLog()
    with running(told.append) as (store, elector):
        monkeypatch.setattr(store, "acquire", Mock(side_effect=ForeignApp("c", "ours", "theirs")))
        store.lose_state()
        wait_for(lambda: told.of(events.LeadingForbidden), 10, "the refusal")
        time.sleep(0.05)
        assert elector.handle.running
        assert not isinstance(elector.state, Leader)
