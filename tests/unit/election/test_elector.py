"""The thread that drives the election: what it does with faults, and that none of them ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from ha_beat import events
from ha_beat.clock import SystemClock
from ha_beat.election.elector import Elector, Eligibility
from ha_beat.election.leader_handle import LeaderHandle
from ha_beat.election.state_machine import Leader, Standby, Timing
from ha_beat.errors import ForeignApp, StoreUnavailable
from ha_beat.reasons import TermEnd, TermStart
from ha_beat.store.lease import Term
from ha_beat.store.presence import Presence, PresenceError
from ha_beat.testing import MemoryLeaseStore, MemoryPresence, SettableClock
from tests.support.leases import replica
from tests.support.servers import wait_for

TIMING = Timing(ttl=10.0, renew_interval=2.5, poll_interval=0.1, stall_timeout=15.0)
E = TypeVar("E", bound=events.Event)


class Bench:
    """Electors in one thread, turned by hand, on a clock that moves only as they wait."""

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
        """Turn them all in turn for so long; the main loop of each moves, but for those that are stalled."""
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


def test_one_leads_and_the_others_say_once_who(bench: Bench):
    """One line for each change of leader, not one for each poll."""
    one, two, three = (bench.elector(name) for name in ("one", "two", "three"))
    bench.run(60)
    assert [elector.handle.term is not None for elector in (one, two, three)] == [True, False, False]
    assert len(bench.heard(events.TermStarted)) == 1
    assert [event.holder for event in bench.heard(events.LeaderSeen)] == ["one", "one"]
    assert bench.heard(events.TermEnded) == []


def test_a_hung_main_loop_costs_the_lease(bench: Bench):
    """Within the stall timeout and a moment, by an active release; and the hung replica does not take it back."""
    one, two = bench.elector("one"), bench.elector("two")
    bench.run(5)
    assert bench.leader() is one
    bench.run(TIMING.stall_timeout + 0.5, one)
    assert bench.leader() is two
    assert [event.reason for event in bench.heard(events.TermEnded)] == [TermEnd.STALLED]
    bench.run(60, one)
    assert bench.leader() is two


def test_a_replica_that_hangs_alone_leads_again_when_it_moves(bench: Bench):
    """A slow tick must not end it."""
    one = bench.elector("one")
    bench.run(5)
    bench.run(30, one)
    assert one.handle.term is None
    bench.run(TIMING.ttl + 1)
    assert one.handle.term is not None


def test_a_step_down_hands_over_at_once_and_bars_who_stepped_down(bench: Bench):
    """Else it would win the race that it started."""
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


def test_a_lost_acquire_reply_costs_a_moment_and_not_a_ttl(bench: Bench):
    """The record names this replica's own attempt, so that it may take it anew."""
    one = bench.elector("one")
    real = bench.store.acquire

    def acquire(*args: Any) -> Any:
        bench.store.lose_replies = True
        try:
            return real(*args)
        finally:
            bench.store.lose_replies = False
            bench.store.acquire = real  # type: ignore[method-assign]

    bench.store.acquire = acquire  # type: ignore[method-assign]
    while bench.store.record is None:
        bench.run(0.01)
    assert one.handle.term is None
    lost = bench.store.record.epoch
    bench.run(1.0)
    assert one.handle.term is not None
    assert one.handle.term.epoch > lost
    assert bench.heard(events.TermStarted)[-1].reason is TermStart.OWN_LEASE


def test_without_redis_the_leader_stops_by_itself_and_leads_again_when_it_is_back(bench: Bench):
    """Said once when it goes and once when it comes back."""
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


def test_after_an_outage_that_took_all_state_those_who_remember_it_go_first(bench: Bench):
    """Who began during the outage would take it for a first start, and run again what a store of its own lags with."""
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


def test_where_nobody_remembers_a_state_a_newcomer_leads(bench: Bench):
    """At a first start at once; where Redis starts later, a moment after it."""
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


def test_replies_lost_after_success_do_not_lengthen_trust(bench: Bench):
    """The server moved the lease each time, the leader never heard: it must stop."""
    one = bench.elector("one")
    bench.run(5)
    bench.store.lose_replies = True
    bench.run(TIMING.ttl)
    assert one.handle.term is None


def test_a_fenced_dispatch_ends_the_term_at_once(bench: Bench):
    """The main loop was told before the elector: no work in between."""
    one = bench.elector("one")
    bench.run(5)
    term = one.handle.term
    assert term is not None
    one.handle.fenced(term, TermEnd.SUPERSEDED)
    assert one.handle.term is None
    one._step()
    assert isinstance(one.state, Standby)
    assert bench.heard(events.TermEnded)[-1].reason is TermEnd.SUPERSEDED


def test_a_fence_that_comes_while_the_elector_looks_for_one_is_not_lost(bench: Bench):
    """Else the replica would hold the lease, renew it, and enqueue nothing."""
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


def test_a_fence_of_an_older_term_does_not_end_this_one(bench: Bench):
    """It was under way when the lease changed hands and came back."""
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


def test_a_lost_lease_is_noticed_by_the_next_renewal(bench: Bench):
    """FLUSHALL: the leader is told, and starts anew with another incarnation of the state."""
    one = bench.elector("one")
    bench.run(5)
    before = one.handle.term
    assert before is not None
    bench.store.lose_state()
    bench.run(TIMING.renew_interval + 0.5)
    assert one.handle.term is not None
    assert (one.handle.term.gen != before.gen, one.handle.term.epoch > before.epoch) == (True, True)


def test_an_app_with_a_foreign_ledger_never_leads_and_says_so_once(bench: Bench):
    """Each try would say it again."""
    one = bench.elector("one")
    bench.store._fingerprint = "somebody else"
    bench.run(60)
    assert one.handle.term is None
    assert len(bench.heard(events.LeadingForbidden)) == 1
    assert "somebody else" in bench.heard(events.LeadingForbidden)[0].detail


def test_closing_gives_back_a_term_and_can_be_repeated(bench: Bench):
    """It runs in a signal handler, and again after it."""
    one = bench.elector("one")
    bench.run(5)
    released: list[Term] = []
    for _ in range(3):
        one.close(released.append)
    assert len(released) >= 1
    assert {term.nonce for term in released} == {released[0].nonce}
    assert one.handle.term is None


def test_an_acquisition_that_comes_in_while_closing_is_given_back(bench: Bench):
    """The reply was under way when SIGTERM came: nobody would renew that lease."""
    one = bench.elector("one")
    real = bench.store.acquire

    def acquire(*args: Any) -> Any:
        one.close(lambda _: None)
        return real(*args)

    bench.store.acquire = acquire  # type: ignore[method-assign]
    bench.run(2)
    assert one.handle.term is None
    assert bench.store.record is not None
    assert not bench.store.record.held


def test_closing_while_a_renewal_is_under_way_tells_of_no_lost_leadership(bench: Bench):
    """An orderly end pages nobody: whoever closes says so."""
    one = bench.elector("one")
    bench.run(5)
    real = bench.store.renew

    def renew(*args: Any) -> Any:
        answer = real(*args)
        one.close(lambda term: bench.store.release(term, TermEnd.SHUTDOWN))
        return answer

    bench.store.renew = renew  # type: ignore[method-assign]
    bench.run(TIMING.renew_interval + 0.1)
    assert bench.store.record is not None
    assert not bench.store.record.held
    assert bench.heard(events.TermEnded) == []


def test_a_presence_connection_that_fails_once_is_not_worth_a_word(bench: Bench):
    """Redis itself goes away, and the subscribed connection is the first to notice: one warning, not two."""
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


# ------------------------------------------------------------------------------------- the thread itself


FAST = Timing(ttl=2.0, renew_interval=0.1, poll_interval=0.05, stall_timeout=30.0)


def started(store: Any, presence: Any, emit: Callable[[events.Event], None], name: str = "one") -> Elector:
    elector = Elector(store, presence, replica(name), FAST, SystemClock(), emit)
    elector.start()
    return elector


@pytest.mark.parametrize("method", ["observe", "acquire", "renew"])
@pytest.mark.parametrize("error", [ValueError("bug"), MemoryError(), StoreUnavailable("x"), OSError(5)])
def test_no_exception_ends_the_thread_and_none_leaves_a_leader(method: str, error: Exception):
    """Any exception in election code: not leader, said once, and campaigning again when it has passed."""
    clock = SystemClock()
    store, told = MemoryLeaseStore(clock), []
    elector = started(store, MemoryPresence(store, clock), told.append)
    try:
        wait_for(lambda: elector.handle.term, 10, "a first term")
        real = getattr(store, method)

        def fail(*_: object) -> None:
            raise error

        setattr(store, method, fail)
        if method != "renew":
            store.lose_state()
        wait_for(lambda: any(isinstance(event, events.TermEnded) for event in told), 10, "the end of the term")
        time.sleep(0.3)
        if method != "renew":
            assert elector.handle.term is None
        setattr(store, method, real)
        wait_for(lambda: elector.handle.term, 15, "another term")
        assert elector.handle.running
        failed = [event for event in told if isinstance(event, events.ElectionFailed)]
        if isinstance(error, StoreUnavailable):
            assert failed == []
        else:
            assert len(failed) >= 1
    finally:
        elector.close(lambda _: None)


def test_a_subscriber_that_raises_hurts_nobody():
    """A broken metric must not cost the lease."""
    clock, hub = SystemClock(), events.Events()

    def broken(_: events.Event) -> None:
        raise RuntimeError("broken subscriber")

    hub.subscribe(broken)
    store = MemoryLeaseStore(clock)
    elector = started(store, MemoryPresence(store, clock), hub.emit)
    try:
        wait_for(lambda: elector.handle.term, 10, "a term")
        epoch = elector.handle.term.epoch if elector.handle.term else 0
        time.sleep(0.5)
        assert elector.handle.term is not None
        assert elector.handle.term.epoch == epoch
    finally:
        elector.close(lambda _: None)


def test_forbidden_replicas_keep_their_thread():
    """Another app's name: it waits for the operator."""
    clock = SystemClock()
    store, told = MemoryLeaseStore(clock), []

    def refuse(*_: object) -> None:
        raise ForeignApp("c", "ours", "theirs")

    store.acquire = refuse  # type: ignore[assignment, method-assign]
    elector = started(store, MemoryPresence(store, clock), told.append)
    try:
        wait_for(lambda: any(isinstance(event, events.LeadingForbidden) for event in told), 10, "the refusal")
        time.sleep(0.3)
        assert elector.handle.running
        assert threading.active_count() > 1
        assert not isinstance(elector.state, Leader)
    finally:
        elector.close(lambda _: None)
