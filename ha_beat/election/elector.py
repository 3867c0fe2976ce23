"""The thread that drives the election: it carries out what :mod:`ha_beat.election.state_machine` decides.

It has connections of its own, so that a busy or blocked main loop does not delay a renewal; and it renews only while
the main loop moves, so that a hung one loses the lease.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.election import state_machine as election
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.connectivity import Command, Contact
from ha_beat.election.state_machine import (
    Action,
    Campaign,
    Campaigned,
    Fenced,
    Fitness,
    Forbidden,
    Leader,
    Observe,
    Outcome,
    PresenceBroke,
    PresenceReady,
    Release,
    Renew,
    Renewal,
    Standby,
    State,
    StepDown,
    Timing,
    Unknown,
    Wait,
    Woken,
)
from ha_beat.errors import LeadershipForbidden, StoreError
from ha_beat.reasons import LeaseAction, LeaseOutcome, TermEnd, TermStart
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
from ha_beat.store.presence import Presence, PresenceError

_T = TypeVar("_T")

#: Longest time, in seconds, for which the thread does not look at what the main loop asks of it.
_SLICE = 0.1

#: Between two looks at the journal, in seconds.
_FOLLOW_INTERVAL = 1.0

#: Between attempts to subscribe again, in seconds.
_REOPEN_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Tenure:
    """A term and what was found when it began."""

    acquired: Acquired
    reason: TermStart
    #: When Redis was last found to be out of reach; ``None`` where it never was. If it was the last server's end that
    #: was found then, that one did nothing after it.
    contact_lost: datetime | None = None
    #: When it was back in reach then, on ``Clock.elapsed``.
    contact_since: float | None = None

    @property
    def nonce(self) -> str:
        return self.acquired.term.nonce


class Elector:
    """Campaigns, renews and gives up, on behalf of the main loop, which asks :attr:`term` before it acts."""

    def __init__(
        self,
        store: LeaseStore,
        presence: Presence,
        replica: Replica,
        timing: Timing,
        clock: Clock,
        emit: Callable[[events.Event], None],
        time: SchedulingTime | None = None,
        follow: Callable[[], None] | None = None,
    ) -> None:
        """``follow`` is called about once a second while standing by, to keep what a takeover needs warm."""
        self._store = store
        self._presence = presence
        self.replica = replica
        self._timing = timing
        self._clock = clock
        self._emit = emit
        self._time = time or SchedulingTime(clock, emit)
        self._follow = follow
        self._follow_at = 0.0
        self._contact = Contact(clock, emit)
        self._thread: threading.Thread | None = None
        self._changed = threading.Event()
        self._closing = False
        #: The term that closing has given back: its end is no news.
        self._given_back = ""
        # Each of these is written by one thread and read by others as a whole.
        self._term: Term | None = None
        self._tenure: Tenure | None = None
        self._state: State = Standby(unbroken=True)
        self._progress_at = clock.elapsed()
        self._step_down: StepDown | None = None
        self._called = False
        self._fenced: Fenced | None = None
        self._reopen_at = 0.0
        self._seen_holder = ("", 0)
        self._seen_move = (0, 0)
        self._forbidden_why = ""
        self._failing = False
        self._deaf, self._deaf_because = False, ""
        self._blind_because = ""
        #: Whether this replica has what a leader needs; until then it does not campaign. Asked often: must be cheap.
        self.ready: Callable[[], bool] = lambda: True
        #: Whether it may campaign, as far as is known outside of the lease. Asked as often.
        self.permitted: Callable[[], bool] = lambda: True
        #: Whether it knows how far the cluster had come. Asked as often.
        self.remembers: Callable[[], bool] = lambda: True

    # --- For the main loop

    def start(self) -> None:
        """Begin to campaign. To be called after any fork."""
        self._progress_at = self._clock.elapsed()
        self._thread = threading.Thread(target=self._run, name="ha_beat-elector", daemon=True)
        self._thread.start()

    def keep_running(self) -> None:
        """Start, or start again where the thread could not be had or has ended: nothing else would ever lead here."""
        if self.running or self._closing:
            return
        if self._thread is not None:
            self._failing = False
            self._fail(RuntimeError("the thread of the election had ended, or never ran; there is another one now"))
        self.start()

    @property
    def term(self) -> Term | None:
        """The term this replica leads in, while it is trusted."""
        term = self._term
        return term if term is not None and term.trusted(self._clock.elapsed()) else None

    @property
    def tenure(self) -> Tenure | None:
        return self._tenure

    @property
    def state(self) -> State:
        return self._state

    def progress(self) -> None:
        """The main loop moves. Without this for ``stall_timeout``, the lease is given up."""
        self._progress_at = self._clock.elapsed()

    @property
    def idle(self) -> float:
        """Seconds for which the main loop has not moved."""
        return self._clock.elapsed() - self._progress_at

    @property
    def running(self) -> bool:
        """Whether the thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond a change of this replica's role."""
        if self._changed.wait(max(seconds, 0.0)):
            self._changed.clear()

    def step_down(self, reason: TermEnd, *, detail: str = "", preferred: str = "") -> None:
        """Give up the lease soon and let others go first, above all the replica with the id ``preferred``."""
        self._step_down = StepDown(reason, detail, preferred)

    def called(self) -> bool:
        """Whether something may be asked of the leader since the last call. Costs nothing."""
        called, self._called = self._called, False
        return called

    def fenced(self, term: Term, reason: TermEnd, detail: str = "") -> None:
        """Redis refused work under this term."""
        current = self._term
        if current is not None and current.nonce == term.nonce:
            # Another one may have begun since the work was sent, and is not over.
            self._term = None
        self._fenced = Fenced(term.nonce, reason, detail)

    def close(self, release: Callable[[Term], object]) -> None:
        """Stop, and hand a term still held to ``release``.

        May run inside a signal handler of the main thread, and again: takes no lock and waits for nothing else.
        """
        self._closing = True
        state, self._term = self._state, None
        if isinstance(state, Leader):
            self._given_back = state.term.nonce
            release(state.term)

    # --- The thread

    def _run(self) -> None:
        while not self._closing:
            try:
                self._step()
                self._failing = False
            except Exception as exc:
                self._fail(exc)
        self._presence.close()

    def _fail(self, exc: Exception) -> None:
        detail = f"{type(exc).__name__}: {exc}"
        after = election.failed(self._state, self._clock.elapsed(), self._timing)
        self._enter(after, TermEnd.ELECTION_FAILED, detail)
        if not self._failing:
            self._failing = True
            self._emit(events.ElectionFailed(detail))
        self._clock.sleep(_SLICE)

    def _step(self) -> None:
        state, now = self._state, self._clock.elapsed()
        if election.distrusted(state, now):
            self._enter(election.absorb(state, Unknown(""), now, self._timing), TermEnd.TRUST_EXPIRED)
            return
        fenced = self._fenced
        if fenced is not None:
            # Cleared only where there was one: the main loop may set it at any moment.
            self._fenced = None
            self._take_in(fenced)
            return
        action = election.decide(state, now, self._fitness(now))
        if isinstance(action, Release):
            self._release(action)
        else:
            outcome = self._carry_out(action, now)
            if isinstance(action, Campaign | Renew):
                kind = LeaseAction.CAMPAIGN if isinstance(action, Campaign) else LeaseAction.RENEWAL
                self._emit(events.LeaseAttempted(kind, _lease_outcome(outcome), self._clock.elapsed() - now))
            if outcome is not None:
                self._take_in(outcome)

    def _fitness(self, now: float) -> Fitness:
        step_down = self._step_down
        if step_down is not None:
            # Cleared only if one was read: the main loop may set it at any moment.
            self._step_down = None
        stalled = now - self._progress_at > self._timing.stall_timeout
        ready = self.ready() and self.permitted()
        return Fitness(stalled, step_down, self.replica.id, ready, self.remembers())

    def _carry_out(self, action: Action, now: float) -> Outcome | None:
        match action:
            case Wait(until=until):
                self._keep_warm(now)
                return self._listen(min(until - now, _SLICE))
            case Observe():
                return self._ask(self._store.observe, "observation")
            case Campaign():
                return self._campaign(action, now)
            case Renew(term=term, seq=seq, presence=with_presence):
                channel = self._presence.channel if with_presence else ""
                answer = self._ask(lambda: self._store.renew(term, seq, channel), "renewal")
                return answer if isinstance(answer, Unknown) else Renewal(answer, now)
            case Release():
                return None

    def _campaign(self, campaign: Campaign, now: float) -> Outcome:
        state = self._state
        seen_epoch = state.seen_epoch if isinstance(state, Standby) else state.term.epoch
        timing, channel = self._timing, self._presence.channel
        attempt = Attempt(self.replica, new_token(), now, timing.ttl, timing.margin, channel, campaign.reason)
        try:
            answer = self._ask(lambda: self._store.acquire(attempt, campaign.expected, seen_epoch), "campaign")
        except LeadershipForbidden as exc:
            return Forbidden(str(exc))
        if isinstance(answer, Acquired):
            self._contact.acquired(server_changed=answer.server_changed)
            self._tenure = Tenure(answer, campaign.reason, self._contact_lost_by_time(), self._contact.back_at)
        return Campaigned(answer, attempt.nonce)

    def _ask(self, call: Callable[[], _T], command: Command) -> _T | Unknown:
        sent_at = self._clock.elapsed()
        try:
            answer = call()
        except StoreError as exc:
            if self._contact.in_reach:
                self._deaf = False
            self._contact.failed(command, str(exc), leading=isinstance(self._state, Leader))
            return Unknown(str(exc))
        heard_at = self._clock.elapsed()
        self._contact.succeeded(command)
        if isinstance(answer, LeaseView | Renewed | Acquired):
            self._time.redis_said(answer.server_ms, sent_at, heard_at)
        return answer

    def _keep_warm(self, now: float) -> None:
        if self._follow is None or now < self._follow_at or not isinstance(self._state, Standby):
            return
        if self._contact.in_reach:
            self._follow_at = now + _FOLLOW_INTERVAL
            why = ""
            try:
                self._follow()
            except StoreError as exc:
                why = str(exc)
            except Exception as exc:
                # A standby that knows less of the past can still lead.
                why = f"{type(exc).__name__}: {exc}"
            if why and why != self._blind_because:
                self._emit(events.FollowFailed(why))
            self._blind_because = why

    def _contact_lost_by_time(self) -> datetime | None:
        lost_at = self._contact.lost_at
        return None if lost_at is None else self._time.now() - timedelta(seconds=self._clock.elapsed() - lost_at)

    def _listen(self, seconds: float) -> Outcome | None:
        """Wait on the subscribed connection, and open it where there is none."""
        if not self._presence.channel:
            now = self._clock.elapsed()
            if now < self._reopen_at or not self._contact.in_reach:
                self._clock.sleep(max(seconds, 0.0))
                return None
            self._reopen_at = now + _REOPEN_INTERVAL
            try:
                self._presence.open()
            except PresenceError as exc:
                # Told at the second failure: at the first it may be that Redis itself is about to be found away.
                if self._deaf and str(exc) != self._deaf_because:
                    self._deaf_because = str(exc)
                    self._emit(events.PresenceUnavailable(str(exc)))
                self._deaf = True
                return None
            self._deaf, self._deaf_because = False, ""
            return PresenceReady()
        try:
            return Woken() if self._presence.wait(seconds) else None
        except PresenceError as exc:
            self._reopen_at = 0.0
            self._contact.broke()
            if isinstance(self._state, Leader):
                self._emit(events.PresenceLost(str(exc)))
            return PresenceBroke()

    def _release(self, action: Release) -> None:
        state, now = self._state, self._clock.elapsed()
        if not isinstance(state, Leader):
            return
        self._enter(election.released(state, now, self._timing), action.reason, action.detail)
        self._ask(lambda: self._store.release(action.term, action.reason, action.detail, action.preferred), "release")

    def _take_in(self, outcome: Outcome) -> None:
        before, now = self._state, self._clock.elapsed()
        after = election.absorb(before, outcome, now, self._timing)
        if isinstance(before, Leader):
            self._listen_to_requests(outcome)
        if isinstance(before, Standby) and isinstance(outcome, LeaseView):
            self._note_leader(outcome)
        if isinstance(outcome, Forbidden) and outcome.detail != self._forbidden_why:
            self._forbidden_why = outcome.detail
            self._emit(events.LeadingForbidden(outcome.detail))
        self._enter(after, *_term_end(outcome))
        if self._closing and isinstance(after, Leader):
            self._release(Release(after.term, TermEnd.SHUTDOWN))

    def _enter(self, after: State, reason: TermEnd, detail: str = "") -> None:
        """The one place where the role changes."""
        before, self._state = self._state, after
        now = self._clock.elapsed()
        match before, after:
            case Standby(), Leader(term=term):
                self._term = term
                self._called = True
                if (tenure := self._tenure) is not None:
                    self._emit(events.TermStarted(term.epoch, tenure.acquired.previous_holder, tenure.reason))
                self._changed.set()
            case Leader(term=term, since=since), Standby():
                self._term = None
                self._seen_holder = ("", 0)
                if term.nonce != self._given_back:
                    self._emit(events.TermEnded(term.epoch, reason, now - since, detail))
                self._changed.set()
            case Leader(), Leader(term=term):
                if self._term is not None:
                    self._term = term
            case _:
                pass

    def _listen_to_requests(self, outcome: Outcome) -> None:
        told = isinstance(outcome, Renewal) and isinstance(outcome.answer, Renewed) and outcome.answer.requests > 0
        if told or isinstance(outcome, Woken):
            self._called = True
            self._changed.set()

    # --- Saying so, once

    def _note_leader(self, view: LeaseView) -> None:
        record = view.record
        if record is None or not record.held or record.holder == self.replica.id:
            return
        moved, self._seen_move = (record.epoch, record.seq) != self._seen_move, (record.epoch, record.seq)
        if moved:
            # Somebody leads, so it can be written.
            self._contact.succeeded("renewal")
        if (record.holder, record.epoch) != self._seen_holder:
            self._seen_holder = (record.holder, record.epoch)
            self._emit(events.LeaderSeen(record.holder, record.epoch))


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
