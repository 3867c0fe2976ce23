"""What a leader does next: begin, take over, hand a batch over, or wait.

Nothing is believed before Redis has answered. A batch whose reply was lost is submitted again as it is, which is safe;
when the term ends first, it is forgotten, and the next leader reads in the ledger what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.dispatch import Answer, Dispatcher, FencedOff
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.elector import Tenure
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.leader.backoff import Backoff
from ha_beat.leader.batch_builder import SCHEDULE_RETRY, Gatherer
from ha_beat.leader.due_queue import Agenda, Slot
from ha_beat.leader.gc_pause import collector_held_off
from ha_beat.leader.ledger_writer import Scribe, Work
from ha_beat.leader.open_claims import Claims
from ha_beat.leader.options import Rules
from ha_beat.leader.pause import PauseState
from ha_beat.leader.planner import Planner, ScheduleSource
from ha_beat.leader.reconcile import take_over
from ha_beat.leader.results import Settler
from ha_beat.leader.state_loss import Loss, assess, with_unfinished
from ha_beat.reasons import EntryFault
from ha_beat.store.lease import Term
from ha_beat.store.ledger import Ledger
from ha_beat.store.shadow import Shadow

#: So many times in a row a batch fails before it may be what is wrong.
_BEFORE_TAKEN_APART = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """Handed over under the term of this nonce, and perhaps not answered yet."""

    nonce: str
    works: tuple[Work, ...]


class Enqueuer:
    """Works off the agenda under a term. Used by the main loop only."""

    def __init__(
        self,
        source: ScheduleSource,
        choose_dispatcher: Callable[[Term], Dispatcher],
        shadow: Shadow,
        time: SchedulingTime,
        cluster: str,
        clock: Clock,
        emit: Callable[[events.Event], None],
        rules: Rules,
        pause: PauseState,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``progress`` is called while many entries are placed, which may take longer than ``stall_timeout``."""
        self._source = source
        self._progress = progress
        self._choose_dispatcher = choose_dispatcher
        self._shadow = shadow
        self._time = time
        self._clock = clock
        self._emit = emit
        self._rules = rules
        self._pause = pause
        self._planner = Planner(source, emit)
        self._claims = Claims(clock, emit, rules.claims_settle_after)
        self._gatherer = Gatherer(source, self._planner, self._claims, cluster, emit, rules)
        self._settler = Settler(source, self._planner, self._claims, shadow, emit)
        self._backoff = Backoff(clock, emit, rules.handover_after)
        self._agenda = Agenda()
        self._dispatcher: Dispatcher | None = None
        self._serving = ""
        self._known_tenure = ""
        #: What was found when the tenure began, until the ledger is mended; a schedule read again finds no other loss.
        self._assessed = ""
        self._loss: Loss | None = None
        #: Whether the next leader would have to look for what this one found, did it end now.
        self._unfinished = False
        #: The server on which the last holder had to be waited for, and since when it was in reach.
        self._held_on = ("", 0.0)
        self._pending: Batch | None = None
        self._to_write: list[Work] = []
        #: Of a batch that could not even be sent: one by one, so that it is seen which of them it is.
        self._alone: list[Work] = []
        #: The broker could not be asked, or took nothing; the size of the batch.
        self._away: tuple[StoreError, int] | None = None
        self._hold_until = 0.0
        #: Whether something waits for the schedule to be read under this term.
        self.held_back = False

    @property
    def agenda(self) -> Agenda:
        return self._agenda

    @property
    def dispatcher(self) -> Dispatcher | None:
        """The way to enqueue that this term goes by; ``None`` before it has one."""
        return self._dispatcher

    def now(self) -> datetime:
        """The scheduling time, in UTC."""
        return self._time.now()

    def serves(self, term: Term) -> bool:
        """Whether the agenda is this term's."""
        return self._serving == term.nonce

    def reload(self) -> None:
        """The schedule has changed: read it again, with the ledger, before the next batch."""
        self._serving = ""

    def advance(self, tenure: Tenure, term: Term) -> float:
        """Do one batch of work. Returns for how many seconds there is nothing to do.

        Raises:
            FencedOff: the term is over.
            BrokerOutOfReach: another replica should try.
        """
        waiting = max(self._backoff.try_at, self._hold_until) - self._clock.elapsed()
        if waiting > 0 and tenure.nonce == self._known_tenure:
            return waiting
        try:
            idle = self._advance(tenure, term)
        except StoreError as exc:
            if self._is_the_batchs_fault(exc):
                return 0.0
            return self._backoff.failed(exc, len(self._pending.works) if self._pending else 0)
        except FencedOff:
            raise
        except Exception:
            # What was taken off the agenda for this batch is found again in the ledger.
            self.reload()
            raise
        away, self._away = self._away, None
        if away is not None:
            return self._backoff.failed(*away)
        self._backoff.succeeded()
        return idle

    def _is_the_batchs_fault(self, error: StoreError) -> bool:
        """Take apart a batch that does not get through to a Redis that answers: it has too large a message, say."""
        batch, dispatcher = self._pending, self._dispatcher
        suspect = (isinstance(error, StoreUnavailable) and error.acted) or (
            isinstance(error, StoreRefused) and error.unexplained
        )
        if batch is None or dispatcher is None or not suspect or self._backoff.failures < _BEFORE_TAKEN_APART:
            return False
        try:
            dispatcher.ledger.notes(["any"])
        except StoreError:
            return False
        self._pending = None
        self._backoff.succeeded()
        self._set_apart(batch.works, error)
        return True

    def stand_by(self) -> None:
        """Let the ledger know what this replica enqueued when it led and could not record. Raises nothing."""
        self._leave()
        if self._dispatcher is not None:
            with suppress(StoreError):
                self._dispatcher.confirm_late()

    def _leave(self) -> None:
        """What an earlier term had to do is somebody else's: nothing of it is late here."""
        if self._serving:
            self._agenda, self._serving = Agenda(), ""

    def _advance(self, tenure: Tenure, term: Term) -> float:
        if self._known_tenure != tenure.nonce:
            self._begin(tenure)
            if self._hold_until > self._clock.elapsed():
                return self._hold_until - self._clock.elapsed()
        if self._pending is not None and self._pending.nonce == term.nonce:
            self._hand_over(term, self._pending)
            return 0.0
        if self._serving != term.nonce:
            with collector_held_off():
                self._take_over(tenure, term)
        dispatcher = self._chosen(term)
        self._claims.settle(dispatcher, self._agenda, term)
        if self._alone:
            works = [self._alone.pop(0)]
        elif self._to_write:
            size = self._rules.batch_size
            works, self._to_write = self._to_write[:size], self._to_write[size:]
        else:
            self._finish(dispatcher, term)
            if self._pause.in_force:
                return float("inf")
            gathered = self._gatherer.gather(Scribe(term, self.now()), self._agenda, dispatcher)
            works = gathered.works
            if gathered.away is not None:
                self._away = (gathered.away, len(gathered.unreachable))
        if works:
            self._hand_over(term, Batch(term.nonce, tuple(works)))
            return 0.0
        due_at = self._agenda.next_due()
        return max((due_at - self.now()).total_seconds(), 0.0) if due_at else float("inf")

    def _chosen(self, term: Term) -> Dispatcher:
        if self._dispatcher is None:
            self._dispatcher = self._choose_dispatcher(term)
        return self._dispatcher

    # --- Taking over

    def _begin(self, tenure: Tenure) -> None:
        """A new term: on another server than the last holder's, wait until that one can't be dispatching any more."""
        self._known_tenure, self._pending = tenure.nonce, None
        self._leave()
        self._backoff.begin()
        acquired = tenure.acquired
        self._time.join(acquired.leaders_offset)
        others = acquired.previous_holder not in ("", acquired.term.holder)
        now, pause = self._clock.elapsed(), 0.0
        self._unfinished = acquired.server_changed
        held_on, since = self._held_on
        if acquired.server_changed and (  # guard: hold-on-changed-server
            others or held_on == acquired.term.run_id  # guard: hold-continued
        ):
            if held_on != acquired.term.run_id:
                # Counted from the first contact with this server: the lease may have been waited for since.
                since = now if tenure.contact_since is None else tenure.contact_since
                self._held_on = (acquired.term.run_id, since)
            pause = max(since + self._rules.changed_server_pause - now, 0.0)
        self._hold_until = now + pause
        if pause:
            self._emit(events.DispatchHeld(pause))

    def _take_over(self, tenure: Tenure, term: Term) -> None:
        """Put every entry on the agenda, from where the ledger says that the cluster is."""
        self._pending, self._to_write, self._alone = None, [], []
        self._dispatcher = self._choose_dispatcher(term)
        rows = self._dispatcher.ledger.read()
        now = self.now()
        self._assess(tenure, rows, self._dispatcher.ledger, now)
        taken = take_over(
            self._one_by_one(self._source.slots()),
            rows,
            self._shadow,
            self._loss,
            scribe=Scribe(term, now),
            catch_up=self._rules.catch_up_after_loss,
            emit=self._emit,
            absence=self._source.absence(term),
        )
        self.held_back = taken.held_back
        self._shadow.gen = term.gen
        # Most entries will not be due in this term; should the ledger be lost in it, this is all that is left of them.
        self._shadow.learn_rows(rows)  # guard: shadow-learns-ledger
        self._to_write = taken.works
        if self._loss is None:
            self._shadow.forget(rows, now)
        self._claims.find(self._dispatcher, term)
        agenda, overdue = Agenda(), 0
        for slot in self._one_by_one(taken.slots):
            self._planner.plan(agenda, slot, now)
            overdue += slot.due_at is not None and slot.instants is not None and slot.due_at <= now
        self._agenda, self._serving = agenda, term.nonce
        self._claims.send_again(agenda, term, now)
        self._emit(events.ScheduleReady(len(agenda), overdue, taken.new))

    def _one_by_one(self, slots: Iterable[Slot]) -> Iterator[Slot]:
        for slot in slots:
            self._progress()
            yield slot

    def _assess(self, tenure: Tenure, rows: Mapping[str, str], ledger: Ledger, now: datetime) -> None:
        """Find out, once in a tenure, whether Redis has lost state."""
        if self._assessed == tenure.nonce:
            return
        acquired = tenure.acquired
        self._loss = assess(
            gen=acquired.term.gen,
            previous_gens=acquired.previous_gens,
            shadow=self._shadow,
            rows=rows,
            facts=ledger.server_facts(now) if acquired.server_changed else None,
            contact_lost=tenure.contact_lost,
            now=now,
            reached_at=self._reached_at(tenure, now),
        )
        if acquired.unfinished:
            self._loss = with_unfinished(self._loss, acquired.unfinished, now)
        if self._loss is not None:
            self._unfinished = True
            self._say(ledger, acquired.term, self._loss.encoded())  # guard: loss-noted
        self._assessed = tenure.nonce
        if self._loss is not None and self._loss.total:
            self._emit(events.StateLost(self._loss.kind, self._rules.catch_up_after_loss))

    def _finish(self, dispatcher: Dispatcher, term: Term) -> None:
        """All that had to be written before work begins is in the ledger."""
        if self._unfinished:
            self._say(dispatcher.ledger, term)
            self._unfinished = False
        self._loss = None

    def _say(self, ledger: Ledger, term: Term, unfinished: str = "") -> None:
        reason = ledger.taken_over(term, unfinished)
        if reason is not None:
            raise FencedOff(reason)

    def _reached_at(self, tenure: Tenure, now: datetime) -> datetime | None:
        since = tenure.contact_since
        return None if since is None else now - timedelta(seconds=self._clock.elapsed() - since)

    # --- Handing over

    def _hand_over(self, term: Term, batch: Batch) -> None:
        self._pending = batch
        dispatcher = self._chosen(term)
        began = self._clock.elapsed()
        try:
            answers = dispatcher.submit(term, [work.operation for work in batch.works])
        except FencedOff as exc:
            self._pending, self._serving = None, ""
            self._emit(events.DispatchFenced(term.epoch, len(batch.works), exc.reason, exc.detail))
            raise
        except StoreError:
            raise
        except Exception as exc:
            self._pending = None
            self._set_apart(batch.works, exc)
            return
        self._pending = None
        mine = sum(answer.kind == "mine" for answer in answers)
        self._emit(events.BatchDispatched(len(answers), self._clock.elapsed() - began, mine))
        self._take_in(batch.works, answers)

    def _take_in(self, works: Sequence[Work], answers: Sequence[Answer]) -> None:
        now = self.now()
        for work, answer in zip(works, answers, strict=True):
            self._settler.take_in(work, answer, self._agenda, now)
            match answer.kind:
                case "done" | "mine" | "partial" if work.due is not None and work.due.send is not None:
                    self._backoff.broker_took_a_message()
                case "paused" | "withdrawn":
                    self._pause.refused = True
                case _:
                    pass
        unsent = [answer.detail for answer in answers if answer.kind == "unsent"]
        if unsent:
            self._away = (StoreUnavailable(unsent[-1], acted=False), len(unsent))

    def _set_apart(self, works: Sequence[Work], exc: Exception) -> None:
        """A batch that can't be put into a command, for one entry's sake, must not hold up the others."""
        if len(works) > 1:
            self._alone = [*works, *self._alone]
            return
        slot, now = works[0].slot, self.now()
        self._emit(events.EntryFailed.raised(slot.label, EntryFault.NOT_SUBMITTED, exc))
        if slot.entry is not None:
            slot.failing_since, slot.detail = slot.failing_since or now, f"{type(exc).__name__}: {exc}"
            self._agenda.put(slot, slot.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
