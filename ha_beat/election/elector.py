"""Thread that drives the election: it carries out the decisions of :mod:`ha_beat.election.state_machine`.

It has its own connections, so that a busy or blocked main loop does not delay a renewal. It renews only while the main
loop makes progress, so that a leader that hangs loses the lease.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.election import state_machine as election
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.connectivity import Connectivity
from ha_beat.election.leader_handle import LeaderHandle
from ha_beat.election.lease_commands import LeaseCommands
from ha_beat.election.presence_keeper import PresenceKeeper
from ha_beat.election.reports import ElectionReports
from ha_beat.election.standby_follower import StandbyFollower
from ha_beat.election.states import (
    Action,
    Campaign,
    Fenced,
    Fitness,
    Forbidden,
    Leader,
    Observe,
    Outcome,
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
from ha_beat.exception_text import exception_line
from ha_beat.reasons import Duty, TermEnd
from ha_beat.store.lease import LeaseStore, LeaseView, Lost, Renewed, Replica, Term
from ha_beat.store.presence import Presence

#: Longest time in seconds between two steps of a standby that may campaign, and pause after an error.
_SLICE = 0.1

#: Longest time in seconds for which a standby polls a lease that does not change before its next step.
_WATCH = 1.0

_ANY_FITNESS = Fitness()

#: Seconds without an answer of Redis, or intervals if those last longer, after which the duty counts as late. The
#: outage itself is an event.
_LEASE_WITHIN, _LEASE_INTERVALS = 30.0, 2


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Conditions for a campaign. The election thread calls both often, so they must be cheap."""

    #: True if this replica has what a leader needs, above all the schedule.
    ready: Callable[[], bool] = lambda: True
    #: True if this replica knows the positions that the cluster has reached.
    remembers: Callable[[], bool] = lambda: True


class Elector:
    """Election thread of one replica. The main loop uses its :attr:`handle`."""

    def __init__(
        self,
        store: LeaseStore,
        presence: Presence,
        replica: Replica,
        timing: Timing,
        clock: Clock,
        emit: Callable[[events.Event], None],
        time: SchedulingTime | None = None,
        eligibility: Eligibility | None = None,
        follow: Callable[[], None] | None = None,
        duties: Duties | None = None,
    ) -> None:
        """``follow`` is called about once a second on a standby, to keep what a takeover needs up to date."""
        time, duties = time or SchedulingTime(clock, emit), duties or Duties(clock, emit)
        self.handle = LeaderHandle(clock, presence.wake)
        #: Written by the election thread only.
        self.state: State = Standby(unbroken=True)
        self._replica = replica
        self._timing = timing
        self._clock = clock
        self._emit = emit
        self._eligibility = eligibility or Eligibility()
        self._duties = duties
        self._connectivity = Connectivity(clock, emit)
        self._presence = PresenceKeeper(presence, self._connectivity, clock, emit, duties)
        self._commands = LeaseCommands(
            store, replica, timing, clock, time, self._connectivity, self._presence, duties, self.handle
        )
        self._follower = StandbyFollower(follow, duties)
        self._reports = ElectionReports(replica, emit)
        self._closing = False
        #: Nonce of the term that :meth:`close` released. Its end is not reported.
        self._released = ""

    # --- Life cycle, called by the main thread

    def start(self) -> None:
        """Start to campaign. Call it after any fork."""
        interval = max(self._timing.renew_interval, self._timing.poll_interval)
        self._duties.expect(Duty.LEASE, within=max(_LEASE_WITHIN, _LEASE_INTERVALS * interval))
        # The time before the start must not count as a hang.
        self.handle.progress()
        self.handle.thread = threading.Thread(target=self._run, name="ha_beat-elector", daemon=True)
        self.handle.thread.start()

    def keep_running(self) -> None:
        """Start the election thread, or restart it if it died."""
        if self.handle.running or self._closing:
            return
        if self.handle.thread is not None:
            self._fail(RuntimeError("the election thread ended or did not start, and is started again"), again=True)
        self.start()

    def close(self, release: Callable[[Term], object]) -> None:
        """Stop, and pass a term that is still held to ``release``.

        May run in a signal handler of the main thread, and more than once: it takes no lock and does not wait.
        """
        self._closing = True
        state = self.state
        self.handle.end()
        self._presence.wake()
        if isinstance(state, Leader):
            self._released = state.term.nonce
            release(state.term)

    # --- The thread

    def _run(self) -> None:
        while not self._closing:
            try:
                self._step()
                self._reports.works()
            except Exception as exc:
                self._fail(exc)
        self._presence.close()

    def _fail(self, exc: Exception, *, again: bool = False) -> None:
        detail = exception_line(exc)
        after = election.failed(self.state, self._clock.elapsed(), self._timing)
        self._enter(after, TermEnd.ELECTION_FAILED, detail)
        self._reports.failed(detail, again=again)
        self._clock.sleep(_SLICE)

    def _step(self) -> None:
        state, now = self.state, self._clock.elapsed()
        if election.distrusted(state, now):
            self._enter(election.absorb(state, Unknown(""), now, self._timing), TermEnd.TRUST_EXPIRED)
            return
        fenced = self.handle.take_fence()
        if fenced is not None:
            self._apply(fenced)
            return
        action = election.decide(state, now, self._fitness())
        outcome = self._carry_out(action, now)
        self._reports.attempted(action, outcome, self._clock.elapsed() - now)
        if outcome is not None:
            self._apply(outcome)

    def _fitness(self) -> Fitness:
        step_down = self.handle.take_step_down()
        if isinstance(self.state, Standby) and self.state.campaign is None:
            # Most steps of a standby decide nothing.
            return _ANY_FITNESS
        return Fitness(
            stalled=self.handle.idle > self._timing.stall_timeout,
            step_down=step_down,
            replica=self._replica.id,
            ready=self._eligibility.ready(),
            remembers=self._eligibility.remembers(),
        )

    def _carry_out(self, action: Action, now: float) -> Outcome | None:
        match self.state, action:
            case Leader(), Wait(until=until):
                # Until the main loop counts as stalled. Whatever it requests ends the wait.
                longest = max(self._timing.stall_timeout - self.handle.idle, _SLICE)
                return self._presence.wait(min(until - now, longest), leading=True)
            case Standby() as state, Wait(until=until):
                if self._connectivity.reachable:
                    self._follower.follow(now, state.seen_epoch)
                return self._watch(state, now, until)
            case _, Observe():
                return self._commands.observe()
            case Standby() as state, Campaign() as campaign:
                return self._commands.campaign(state, campaign, now)
            case _, Renew() as renewal:
                return self._commands.renew(renewal, now)
            case _, Release() as release:
                self._release(release)
        return None

    def _watch(self, state: Standby, now: float, until: float) -> Outcome | None:
        """Wait until ``until``, then poll the lease for about a second while it does not change.

        This has the same effect as the steps of a standby, for half the processor time.
        """
        ends = now + _WATCH
        while True:
            outcome: Outcome | None = self._presence.wait(min(until - now, _SLICE), leading=False)
            now = self._clock.elapsed()
            if outcome is not None or not until <= now < ends or state.campaign is not None or self._closing:
                return outcome
            outcome = self._commands.observe()
            if not isinstance(outcome, LeaseView) or not election.unchanged(state, outcome, now, self._timing):
                return outcome
            until = now + self._timing.poll_interval

    def _release(self, release: Release) -> None:
        """Release the lease. This replica stops leading before the command is sent."""
        state = self.state
        if isinstance(state, Leader):
            after = election.released(state, self._clock.elapsed(), self._timing)
            self._enter(after, release.reason, release.detail)
            self._commands.release(release)

    def _apply(self, outcome: Outcome) -> None:
        """Apply an outcome to the state, and report it."""
        before = self.state
        after = election.absorb(before, outcome, self._clock.elapsed(), self._timing)
        if isinstance(before, Leader):
            if _requests_wait(outcome):
                self.handle.wake(requests=True)
        elif isinstance(outcome, LeaseView) and self._reports.leader_seen(outcome):
            # Another replica renews, so the lease can be written.
            self._connectivity.succeeded("renewal")
        if isinstance(outcome, Forbidden):
            self._reports.forbidden(outcome)
        self._enter(after, *_term_end(outcome))
        if self._closing and isinstance(after, Leader):
            self._release(Release(after.term, TermEnd.SHUTDOWN))

    def _enter(self, after: State, reason: TermEnd, detail: str = "") -> None:
        """Change the state. No other method does."""
        before, self.state = self.state, after
        match before, after:
            case Standby(), Leader(term=term):
                self.handle.begin(term)
                self._duties.suspend(Duty.FOLLOW_JOURNAL)
                if (origin := self.handle.origin) is not None:
                    self._emit(events.TermStarted(term.epoch, origin.acquired.previous_holder, origin.reason))
                self.handle.wake()
            case Leader(term=term, since=since), Standby():
                self.handle.end()
                self._reports.led()
                if term.nonce != self._released:
                    self._emit(events.TermEnded(term.epoch, reason, self._clock.elapsed() - since, detail))
                self.handle.wake()
            case Leader(), Leader(term=term):
                self.handle.extend(term)
            case _:
                pass


def _requests_wait(outcome: Outcome) -> bool:
    match outcome:
        case Renewal(answer=Renewed(requests=requests)):
            return requests > 0
        case Woken():
            return True
        case _:
            return False


def _term_end(outcome: Outcome) -> tuple[TermEnd, str]:
    """Return why a term ended, if this outcome ended it, and a detail."""
    match outcome:
        case Renewal(answer=Lost(reason=reason)):
            return reason, ""
        case Fenced(reason=reason, detail=detail):
            return reason, detail
        case Unknown(detail=detail):
            return TermEnd.TRUST_EXPIRED, detail
        case _:
            return TermEnd.TRUST_EXPIRED, ""
