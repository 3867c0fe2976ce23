"""Election thread: its reaction to faults, none of which ends it."""

import threading
from collections import deque
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from ha_beat import events
from ha_beat.duties import Duties
from ha_beat.election.elector import Elector
from ha_beat.election.leader_handle import LeaderHandle
from ha_beat.election.standby_follower import StandbyFollower
from ha_beat.election.states import Fenced, Leader, Standby, Timing
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import Duty, TermEnd, TermStart
from ha_beat.store.lease import Term
from ha_beat.store.presence import PresenceError
from ha_beat.testing import MemoryLeaseStore, MemoryPresence, SettableClock
from tests.support.leases import attempt
from tests.unit.election.electors import TIMING, Electors


@pytest.fixture
def electors() -> Electors:
    return Electors()


@pytest.fixture
def one(electors: Electors) -> Elector:
    """The only replica, which leads."""
    elector = electors.add("one")
    electors.run(5)
    assert electors.leader is elector
    return elector


def test_standbys_report_the_leader_once(electors: Electors):
    leads = [electors.add(name) for name in ("one", "two", "three")]
    electors.run(60)
    assert [elector.handle.term is not None for elector in leads] == [True, False, False]
    assert len(electors.events.of(events.TermStarted)) == 1
    assert [event.holder for event in electors.events.of(events.LeaderSeen)] == ["one", "one"]
    assert electors.events.of(events.TermEnded) == []


def test_standby_follows_once_a_second_and_at_once_in_a_new_term(electors: Electors):
    """Otherwise a loss of all data in a cluster's first second would look like a first start."""
    followed: list[float] = []
    now = 0.0
    follower = StandbyFollower(lambda: followed.append(now), electors.duties)
    for now, epoch in [(0.0, 0), (0.1, 0), (0.2, 7), (0.3, 7), (1.1, 7), (1.2, 7), (1.3, 8)]:
        follower.follow(now, epoch)
    assert followed == [0.0, 0.2, 1.2, 1.3]


def test_hung_main_loop_loses_the_lease(electors: Electors, one: Elector):
    two = electors.add("two")
    electors.run(TIMING.stall_timeout + 0.5, one)
    assert electors.leader is two
    assert [event.reason for event in electors.events.of(events.TermEnded)] == [TermEnd.STALLED]
    electors.run(60, one)
    assert electors.leader is two


def test_leader_waits_for_its_renewal_or_until_its_main_loop_stalls(electors: Electors):
    """A request of the main loop ends the wait, so the thread need not check for one ten times a second."""
    presence = MemoryPresence(electors.store, electors.clock)
    presence.wait, presence.wake = Mock(side_effect=presence.wait), Mock()  # type: ignore[method-assign]
    one = electors.add(presence=presence)
    electors.run(5)
    assert max(call.args[0] for call in presence.wait.call_args_list) == pytest.approx(TIMING.renew_interval, abs=0.2)
    presence.wait.reset_mock()
    electors.run(TIMING.stall_timeout, one)
    assert min(call.args[0] for call in presence.wait.call_args_list) == pytest.approx(0.1, abs=0.05)
    assert presence.wake.call_count == 0
    one.handle.step_down(TermEnd.STEP_DOWN)
    one.handle.fenced(Mock(), TermEnd.SUPERSEDED)
    one.close(lambda _: None)
    assert presence.wake.call_count == 3


def test_standby_polls_at_its_interval_and_steps_once_a_second(electors: Electors, one: Elector):
    two = electors.add("two")
    electors.run(1)
    observed, began = Mock(side_effect=electors.store.observe), electors.clock.elapsed()
    electors.store.observe = observed  # type: ignore[method-assign]
    steps = 0
    while electors.clock.elapsed() - began < 5:
        one.handle.progress()
        two._step()
        steps += 1
        if isinstance(one.state, Leader) and electors.clock.elapsed() >= one.state.next_renewal:
            one._step()
    assert observed.call_count == pytest.approx(50, abs=3)
    assert steps < 25
    assert one.handle.term is not None


def test_only_replica_leads_again_after_a_hang(electors: Electors, one: Elector):
    electors.run(30, one)
    assert one.handle.term is None
    electors.run(TIMING.ttl + 1)
    assert one.handle.term is not None


def test_step_down_hands_over_and_bars_the_old_leader(electors: Electors, one: Elector):
    """Otherwise the old leader would win the race for the lease that it released."""
    two = electors.add("two")
    one.handle.step_down(TermEnd.STEP_DOWN, detail="ann")
    electors.run(0.5)
    assert electors.leader is two
    electors.run(60)
    assert electors.leader is two
    assert electors.events.of(events.TermStarted)[-1].reason is TermStart.RELEASED
    ended = electors.events.of(events.TermEnded)[-1]
    assert (ended.reason, ended.detail) == (TermEnd.STEP_DOWN, "ann")


def test_lost_acquire_reply_delays_the_term_by_less_than_a_ttl(electors: Electors, monkeypatch):
    """The record has the nonce of this replica's attempt, so the replica may campaign again immediately."""
    one, acquire = electors.add(), electors.store.acquire

    def lost(*args: Any) -> Any:
        acquire(*args)
        monkeypatch.undo()
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(electors.store, "acquire", lost)
    while electors.store.record is None:
        electors.run(0.01)
    assert one.handle.term is None
    epoch = electors.store.record.epoch
    electors.run(1.0)
    assert one.handle.term.epoch > epoch
    assert electors.events.of(events.TermStarted)[-1].reason is TermStart.OWN_LEASE


@pytest.mark.parametrize(("fault", "value"), [("reachable", False), ("lose_replies", True)])
def test_leader_without_redis_stops_and_leads_again_after_the_outage(electors: Electors, one: Elector, fault, value):
    """The outage and its end are reported once each, even if only the replies are lost."""
    began = electors.clock.elapsed()
    setattr(electors.store, fault, value)
    while one.handle.term is not None and electors.clock.elapsed() < began + 20:
        electors.run(0.1)
    lasted = electors.clock.elapsed() - began
    assert TIMING.ttl - TIMING.margin - TIMING.renew_interval - 0.2 < lasted <= TIMING.ttl
    electors.run(30)
    assert one.handle.term is None
    setattr(electors.store, fault, not value)
    electors.run(TIMING.ttl + 1)
    assert one.handle.term is not None
    assert len(electors.events.of(events.LeaseUnreachable)) == 1
    assert len(electors.events.of(events.LeaseReachable)) == 1


def test_outage_after_the_end_of_trust_is_not_reported_as_a_leaders(electors: Electors, one: Elector, monkeypatch):
    """A command may take longer than the trust lasts, for example because of a slow name server."""

    def slow(*_: object) -> None:
        electors.clock.advance(TIMING.ttl)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(electors.store, "renew", slow)
    electors.run(TIMING.renew_interval + 0.5)
    assert [event.leading for event in electors.events.of(events.LeaseUnreachable)] == [False]
    assert len(electors.events.of(events.TermEnded)) == 1


class OffsetClock:
    """Clock of the server, `ahead` seconds ahead of another one."""

    def __init__(self, clock: SettableClock) -> None:
        self._clock = clock
        self.ahead = 0.0

    def wall(self) -> float:
        return self._clock.wall() + self.ahead


@pytest.mark.parametrize(
    ("redis", "last", "own"), [(-20, None, 20), (-20, 20, 20), (20, 0, 0), (-20, 0, 0), (-20, -9, 20)]
)
def test_term_begins_with_its_own_offset(redis, last, own):
    """The script that acquires the lease stores it, and judges the first batch by it, not by the last leader's."""
    electors = Electors()
    electors.store = MemoryLeaseStore(electors.clock)
    server = electors.store._clock = OffsetClock(electors.clock)
    server.ahead = redis
    if last is not None:
        electors.store.acquire(attempt("two"), None, 0)
        electors.store.record = replace(electors.store.record, state="released", offset_ms=str(last * 1000))
    one = electors.add("one")
    electors.run(1)
    assert one.handle.term is not None
    assert electors.store.observe().record.offset == pytest.approx(own, abs=0.1)
    assert electors.time.offset == pytest.approx(own, abs=0.1)


def test_leader_renews_at_once_when_the_clock_of_redis_steps(electors: Electors, one: Elector):
    """Until then the script refuses what is due, because the server's clock is behind."""
    server = electors.store._clock = OffsetClock(electors.clock)
    electors.run(0.2)
    seq = one.state.seq
    server.ahead = -3600
    electors.run(TIMING.renew_interval)
    assert one.state.seq == seq + 2
    electors.run(1)
    assert one.state.seq == seq + 2


def test_replica_that_remembers_lost_state_campaigns_first(electors: Electors, one: Elector):
    """A replica that started during the outage would assume a first start, and repeat occurrences."""
    electors.store.reachable = False
    electors.run(30)
    electors.add("newcomer", remembers=False)
    electors.run(1)
    electors.all.reverse()
    electors.store.lose_state()
    electors.store.reachable = True
    electors.run(10)
    assert electors.leader is one


def test_newcomer_leads_if_no_replica_remembers_state(electors: Electors):
    """It leads immediately at a first start, and a moment after Redis if that starts later."""
    first = electors.add("first", remembers=False)
    electors.run(0.5)
    assert electors.leader is first
    first.close(lambda term: electors.store.release(term, TermEnd.SHUTDOWN))
    electors.all.remove(first)
    electors.store.lose_state()
    electors.store.reachable = False
    second = electors.add("second", remembers=False)
    electors.run(10)
    electors.store.reachable = True
    electors.run(TIMING.preference_wait + TIMING.longest_backoff + 0.5)
    assert electors.leader is second


def test_fenced_dispatch_ends_the_term(electors: Electors, one: Elector):
    """The term ends before the election thread reads the fence: no work is done in between."""
    one.handle.fenced(one.handle.term, TermEnd.SUPERSEDED)
    assert one.handle.term is None
    one._step()
    assert isinstance(one.state, Standby)
    assert electors.events.of(events.TermEnded)[-1].reason is TermEnd.SUPERSEDED


def test_fence_set_while_the_elector_reads_it_is_kept(one: Elector):
    """Otherwise the replica would renew the lease and enqueue nothing."""
    handle, term = one.handle, one.handle.term

    class Interrupted(deque[Fenced]):
        """Box into which the main loop puts a fence as soon as the elector has found it empty."""

        def __bool__(self) -> bool:
            empty = not len(self)
            if empty and handle.term is not None:
                handle.fenced(term, TermEnd.SUPERSEDED)
            return not empty

    handle._fence = Interrupted(maxlen=1)
    one._step()
    one._step()
    assert isinstance(one.state, Standby)


def test_requests_reported_while_the_main_loop_reads_the_flag_are_kept():
    """Otherwise they would wait for the next renewal."""

    class Interrupted(LeaderHandle):
        """Handle whose election thread reports requests as soon as the main loop has read the flag."""

        @property
        def _requests_pending(self) -> bool:
            read, self.flag = self.flag, True
            return read

        @_requests_pending.setter
        def _requests_pending(self, pending: bool) -> None:
            self.flag = pending

    handle = Interrupted(SettableClock())
    assert handle.take_requests_pending() is False
    assert handle.flag


def test_fence_of_an_older_term_does_not_end_this_one(electors: Electors, one: Elector):
    """The refused work was sent before the lease was lost and acquired again."""
    older = one.handle.term
    one.handle.step_down(TermEnd.STEP_DOWN, detail="ann")
    electors.run(TIMING.ttl + 1)
    assert one.handle.term is not None
    one.handle.fenced(older, TermEnd.SUPERSEDED)
    electors.run(0.2)
    assert one.handle.term is not None


def test_next_renewal_notices_a_lost_lease(electors: Electors, one: Elector):
    """After FLUSHALL the leader stops, and starts a new term on new state."""
    before = one.handle.term
    electors.store.lose_state()
    electors.run(TIMING.renew_interval + 0.5)
    assert (one.handle.term.gen != before.gen, one.handle.term.epoch > before.epoch) == (True, True)


def test_replica_of_another_app_never_leads_and_reports_it_once(electors: Electors):
    one = electors.add()
    electors.store._fingerprint = "another app"
    electors.run(60)
    assert one.handle.term is None
    (event,) = electors.events.of(events.LeadingForbidden)
    assert "another app" in event.detail


def test_close_releases_the_term_and_can_be_repeated(one: Elector):
    """Celery calls it in a signal handler and once more."""
    released: list[Term] = []
    for _ in range(3):
        one.close(released.append)
    assert len({term.nonce for term in released}) == 1
    assert one.handle.term is None


def test_lease_acquired_during_close_is_released(electors: Electors, monkeypatch):
    """SIGTERM arrived before the reply, and no thread would renew that lease."""
    one, acquire = electors.add(), electors.store.acquire

    def closing(*args: Any) -> Any:
        one.close(lambda _: None)
        return acquire(*args)

    monkeypatch.setattr(electors.store, "acquire", closing)
    electors.run(2)
    assert one.handle.term is None
    assert not electors.store.record.held


def test_close_during_a_renewal_reports_no_lost_term(electors: Electors, one: Elector, monkeypatch):
    """The shutdown is logged by its caller, and must not look like a lost lease."""
    renew = electors.store.renew

    def closing(*args: Any) -> Any:
        answer = renew(*args)
        one.close(lambda term: electors.store.release(term, TermEnd.SHUTDOWN))
        return answer

    monkeypatch.setattr(electors.store, "renew", closing)
    electors.run(TIMING.renew_interval)
    assert not electors.store.record.held
    assert electors.events.of(events.TermEnded) == []


def test_presence_failure_is_reported_at_the_second_attempt(electors: Electors, monkeypatch):
    """In an outage of Redis the presence connection fails first, and must not cause a second warning."""
    presence = MemoryPresence(electors.store, electors.clock)
    electors.add(presence=presence)
    broken = Mock(side_effect=PresenceError("cut"))
    with monkeypatch.context() as patch:
        patch.setattr(presence, "open", broken)
        electors.run(0.5)
        assert Duty.PRESENCE not in electors.duties.late()
        electors.run(20)
        assert electors.duties.late()[Duty.PRESENCE].detail == "cut"
    electors.run(2)
    presence.close()
    monkeypatch.setattr(presence, "open", broken)
    electors.run(0.5)
    assert Duty.PRESENCE not in electors.duties.late()


def test_long_intervals_make_no_late_lease(monkeypatch):
    """Leader and standby send commands less often than every 30 seconds, which would otherwise count as late."""
    monkeypatch.setattr(threading.Thread, "start", Mock())
    electors = Electors(Timing(ttl=200, renew_interval=50, poll_interval=100, stall_timeout=101))
    boards = []
    for name in ("one", "two"):
        electors.duties = Duties(electors.clock, electors.events.append)
        boards.append(electors.duties)
        electors.add(name).start()
        electors.run(1)
    for _ in range(50):
        electors.run(8)
        assert [Duty.LEASE in duties.late() for duties in boards] == [False, False]
    for command in ("renew", "observe", "acquire"):
        monkeypatch.setattr(electors.store, command, Mock(side_effect=StoreUnavailable("gone")))
    electors.run(201)
    assert [Duty.LEASE in duties.late() for duties in boards] == [True, True]
