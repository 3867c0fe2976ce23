"""Thread that drives the election: it carries out the decisions of :mod:`ha_beat.election.state_machine`.

It has its own connections, so that a busy or blocked main loop does not delay a renewal. It renews only while the main
loop makes progress, so that a leader that hangs loses the lease.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.election import state_machine as election
from ha_beat.election.cluster_clock import AGREEMENT, SchedulingTime
from ha_beat.election.connectivity import Command, Connectivity
from ha_beat.election.leader_handle import LeaderHandle, Tenure
from ha_beat.election.presence_keeper import PresenceKeeper
from ha_beat.election.reports import ElectionReports, StandbyFollower
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
from ha_beat.errors import LeadershipForbidden, StoreError
from ha_beat.exception_text import exception_line
from ha_beat.reasons import Duty, LeaseAction, LeaseOutcome, TermEnd
from ha_beat.store.lease import (
    Acquired,
    Attempt,
    LeaseStore,
    LeaseView,
    Lost,
    Refused,
    Renewed,
    Replica,
    Term,
    new_token,
)
from ha_beat.store.presence import Presence

_T = TypeVar("_T")

#: Longest time in seconds between two steps of a standby, which campaigns as soon as it may, and after an error.
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
        self.replica = replica
        self.handle = LeaderHandle(clock, presence.wake)
        #: Written by the election thread only.
        self.state: State = Standby(unbroken=True)
        self._store = store
        self._timing = timing
        self._clock = clock
        self._emit = emit
        self._time = time or SchedulingTime(clock, emit)
        self._eligibility = eligibility or Eligibility()
        self._duties = duties or Duties(clock, emit)
        self._connectivity = Connectivity(clock, emit)
        self._presence = PresenceKeeper(presence, self._connectivity, clock, emit, self._duties)
        self._follower = StandbyFollower(follow, self._duties)
        self._reports = ElectionReports(emit)
        self._closing = False
        #: Nonce of the term that :meth:`close` released. Its end is not reported.
        self._released = ""

    # --- Life cycle, called by the main thread

    def start(self) -> None:
        """Start to campaign. Call it after any fork."""
        interval = max(self._timing.renew_interval, self._timing.poll_interval)
        self._duties.expect(Duty.LEASE, within=max(_LEASE_WITHIN, _LEASE_INTERVALS * interval))
        self.handle.run(threading.Thread(target=self._run, name="ha_beat-elector", daemon=True))

    def keep_running(self) -> None:
        """Start the election thread, or restart it if it died."""
        if self.handle.running or self._closing:
            return
        if self.handle.started:
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
        if isinstance(action, Release):
            self._release(action)
            return
        outcome = self._carry_out(action, now)
        if isinstance(action, Campaign | Renew):
            kind = LeaseAction.CAMPAIGN if isinstance(action, Campaign) else LeaseAction.RENEWAL
            self._emit(events.LeaseAttempted(kind, _lease_outcome(outcome), self._clock.elapsed() - now))
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
            replica=self.replica.id,
            ready=self._eligibility.ready(),
            remembers=self._eligibility.remembers(),
        )

    def _carry_out(self, action: Action, now: float) -> Outcome | None:
        match action:
            case Wait(until=until):
                state = self.state
                if isinstance(state, Leader):
                    # Until the main loop counts as stalled. What it asks for ends the wait.
                    longest = max(self._timing.stall_timeout - self.handle.idle, _SLICE)
                    return self._presence.wait(min(until - now, longest), leading=True)
                if self._connectivity.reachable:
                    self._follower.follow(now, state.seen_epoch)
                return self._watch(state, now, until)
            case Observe():
                return self._ask(self._store.observe, "observation")
            case Campaign():
                return self._campaign(action, now)
            case Renew(term=term, seq=seq, presence=with_presence):
                channel = self._presence.channel if with_presence else ""
                sent = self._time.offset
                answer = self._ask(lambda: self._store.renew(term, seq, channel), "renewal")
                if isinstance(answer, Unknown):
                    return answer
                # Redis' clock stepped. Until the record has the new offset, the script refuses what is due.
                return Renewal(answer, now, outdated=abs(self._time.offset - sent) > AGREEMENT / 2)
            case Release():
                return None

    def _watch(self, state: Standby, now: float, until: float) -> Outcome | None:
        """Wait until ``until``, and poll the lease for about a second more while it does not change.

        It does what the steps of a standby do, for half the processor time.
        """
        ends = now + _WATCH
        while True:
            outcome: Outcome | None = self._presence.wait(min(until - now, _SLICE), leading=False)
            now = self._clock.elapsed()
            if outcome is not None or not until <= now < ends or state.campaign is not None or self._closing:
                return outcome
            outcome = self._ask(self._store.observe, "observation")
            if not isinstance(outcome, LeaseView) or not election.unchanged(state, outcome, now, self._timing):
                return outcome
            until = now + self._timing.poll_interval

    def _campaign(self, campaign: Campaign, now: float) -> Outcome:
        state = self.state
        seen_epoch = state.seen_epoch if isinstance(state, Standby) else state.term.epoch
        timing, channel = self._timing, self._presence.channel
        sighting = state.sighting if isinstance(state, Standby) else None
        leaders_offset = sighting.record.offset if sighting is not None else None
        # The script judges the first batch by this offset, not by the last leader's.
        offset = self._time.offset_in_term(leaders_offset)  # guard: clock-own-offset
        attempt = Attempt(self.replica, new_token(), now, timing.ttl, timing.margin, channel, campaign.reason, offset)
        try:
            answer = self._ask(lambda: self._store.acquire(attempt, campaign.expected, seen_epoch), "campaign")
        except LeadershipForbidden as exc:
            return Forbidden(exc.reason, str(exc))
        if isinstance(answer, Acquired):
            self._time.join(leaders_offset)
            self._connectivity.acquired(server_changed=answer.server_changed)
            self.handle.tenure = self._tenure(answer, campaign)
        return Campaigned(answer, attempt.nonce)

    def _tenure(self, acquired: Acquired, campaign: Campaign) -> Tenure:
        lost_at, back_at = self._connectivity.lost_at, self._connectivity.back_at
        if lost_at is None:
            return Tenure(acquired, campaign.reason, None, back_at)
        lost = self._time.now() - timedelta(seconds=self._clock.elapsed() - lost_at)
        return Tenure(acquired, campaign.reason, lost, back_at)

    def _ask(self, call: Callable[[], _T], command: Command) -> _T | Unknown:
        sent_at = self._clock.elapsed()
        try:
            answer = call()
        except StoreError as exc:
            if self._connectivity.reachable:
                self._presence.outage_began()
            self._connectivity.failed(command, str(exc), leading=self.handle.term is not None)
            return Unknown(str(exc))
        self._duties.done(Duty.LEASE)
        received_at = self._clock.elapsed()
        self._connectivity.succeeded(command)
        if isinstance(answer, LeaseView | Renewed | Acquired):
            self._time.redis_said(answer.server_ms, sent_at, received_at)
        return answer

    def _release(self, action: Release) -> None:
        state = self.state
        if not isinstance(state, Leader):
            return
        self._enter(election.released(state, self._clock.elapsed(), self._timing), action.reason, action.detail)
        self._ask(lambda: self._store.release(action.term, action.reason, action.detail, action.preferred), "release")

    def _apply(self, outcome: Outcome) -> None:
        """Apply an outcome to the state, and report what it shows."""
        before = self.state
        after = election.absorb(before, outcome, self._clock.elapsed(), self._timing)
        if isinstance(before, Leader):
            if _requests_wait(outcome):
                self.handle.wake(requests=True)
        elif isinstance(outcome, LeaseView) and self._reports.leader_seen(outcome, self.replica):
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
                if (tenure := self.handle.tenure) is not None:
                    self._emit(events.TermStarted(term.epoch, tenure.acquired.previous_holder, tenure.reason))
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


def _lease_outcome(outcome: Outcome | None) -> LeaseOutcome:
    match outcome:
        case Campaigned(answer=Acquired()):
            return LeaseOutcome.WON
        case Campaigned(answer=Refused()):
            return LeaseOutcome.REFUSED
        case Forbidden():
            return LeaseOutcome.FORBIDDEN
        case Renewal(answer=Renewed()):
            return LeaseOutcome.RENEWED
        case Renewal(answer=Lost()):
            return LeaseOutcome.LOST
        case Renewal():
            return LeaseOutcome.LATE
        case _:
            return LeaseOutcome.UNKNOWN


def _term_end(outcome: Outcome) -> tuple[TermEnd, str]:
    """Return why a term ended, if this outcome ended it, and the particulars."""
    match outcome:
        case Renewal(answer=Lost(reason=reason)):
            return reason, ""
        case Fenced(reason=reason, detail=detail):
            return reason, detail
        case Unknown(detail=detail):
            return TermEnd.TRUST_EXPIRED, detail
        case _:
            return TermEnd.TRUST_EXPIRED, ""
