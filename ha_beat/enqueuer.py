"""The leader's work: takes over the ledger, then enqueues what is due, batch by batch, in order of due time.

Nothing is believed before Redis has answered. A batch whose reply was lost is submitted again as it is, which is safe;
when the term ends first, it is forgotten, and the next leader reads in the ledger what became of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from ha_beat import events
from ha_beat.agenda import Agenda, Slot
from ha_beat.clock import Clock
from ha_beat.dispatch import Answer, Dispatcher, FencedOff, OpenClaim, Operation
from ha_beat.dispatch.header import with_header
from ha_beat.elector import Tenure
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.lease import Term
from ha_beat.ledger import LedgerRow
from ha_beat.occurrence import FOREVER, Due, Occurrence, Skipped
from ha_beat.scheduling_time import SchedulingTime
from ha_beat.state_loss import Loss, Shadow, assess
from ha_beat.takeover import Absence, take_over
from ha_beat.verdicts import Scribe, Work

#: Seconds until an entry that failed alone is tried again.
_ENTRY_RETRY = 1.0

#: Seconds until an entry whose schedule raises is asked again.
_SCHEDULE_RETRY = 60.0

#: A broker that takes nothing from this replica, term after term, is left to others less and less often: by this much.
_MOST_PATIENCE = 6

#: Seconds, at most, until a batch that failed as a whole is tried again.
_LONGEST_BACKOFF = 1.0


class BrokerOutOfReach(StoreUnavailable):
    """The broker has not answered this replica for so long that another one should try."""


class ScheduleSource(Protocol):
    """Where the entries come from: the scheduler class that Celery runs."""

    def slots(self) -> Iterable[Slot]:
        """A new slot for each entry that can be scheduled; ``base`` is the entry's own last run, or the minimum."""
        ...

    def check(self, slot: Slot) -> tuple[bool, float]:
        """Ask an entry that alone knows: is it due, and in how many seconds to ask again."""
        ...

    def arguments(self, slot: Slot) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
        """The args, kwargs and options that go into the entry's message now."""
        ...

    def settled(self, slot: Slot, row: LedgerRow) -> None:
        """The ledger has the row."""
        ...

    def absence(self, term: Term) -> Absence | None:
        """What can be said of entries that are not there; ``None`` where that means nothing."""
        ...

    def armed(self, entry_id: str) -> None:
        """The ledger has it that the entry has begun, gone on again, or gone."""
        ...

    def finished(self, slot: Slot) -> None:
        """The entry has no instant left."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Handed over under the term of this nonce, and perhaps not answered yet."""

    nonce: str
    works: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the enqueuer goes by. Durations in seconds.

    ``handover_after``: a broker out of reach for so long is left to another replica (for longer each time that did not
    help). ``claims_settle_after``: a claim
    of another term can't be under way any more. ``changed_server_pause``: nothing is dispatched for so long after a
    lease was taken over from another holder on another server process.
    """

    batch_size: int = 100
    publish_deadline: float | None = 60.0
    catch_up_after_loss: bool = False
    handover_after: float = 10.0
    claims_settle_after: float = 6.0
    changed_server_pause: float = 10.0


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
    ) -> None:
        self._source = source
        self._choose_dispatcher = choose_dispatcher
        self._shadow = shadow
        self._time = time
        self._cluster = cluster
        self._clock = clock
        self._emit = emit
        self._rules = rules
        self._agenda = Agenda()
        self._dispatcher: Dispatcher | None = None
        self._serving = ""
        self._known_tenure = ""
        #: What was found when the tenure began, until the ledger is mended; a schedule read again finds no other loss.
        self._assessed = ""
        self._loss: Loss | None = None
        self._pending: Batch | None = None
        self._to_write: list[Work] = []
        #: Of a batch that could not even be sent: one by one, so that it is seen which of them it is.
        self._alone: list[Work] = []
        #: Terms that ended for the broker's sake since it last took a message from this replica.
        self._handovers = 0
        self._claims: list[OpenClaim] = []
        self._claims_due_at = 0.0
        #: Of entries to be sent again: what the journal has to be told with them.
        self._carried: dict[str, tuple[str, ...]] = {}
        #: The broker could not be asked, or took nothing; the size of the batch.
        self._away: tuple[StoreError, int] | None = None
        self._hold_until = 0.0
        self._try_at = 0.0
        self._failures = 0
        self._failing_since: float | None = None
        #: Whether something waits for the schedule to be read under this term.
        self.held_back = False
        #: While the cluster is paused nothing is gathered. Redis may know before this does: see ``refused_as_paused``.
        self.paused = False
        self.refused_as_paused = False

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
        waiting = max(self._try_at, self._hold_until) - self._clock.elapsed()
        if waiting > 0 and tenure.nonce == self._known_tenure:
            return waiting
        try:
            idle = self._advance(tenure, term)
        except StoreError as exc:
            return self._postpone(exc, len(self._pending.works) if self._pending else 0)
        away, self._away = self._away, None
        if away is not None:
            return self._postpone(*away)
        self._failures, self._failing_since = 0, None
        return idle

    def stand_by(self) -> None:
        """Let the ledger know what this replica enqueued when it led and could not record. Raises nothing."""
        if self._dispatcher is not None:
            with suppress(StoreError):
                self._dispatcher.settle_up()

    def _advance(self, tenure: Tenure, term: Term) -> float:
        if self._known_tenure != tenure.nonce:
            self._begin(tenure)
            if self._hold_until > self._clock.elapsed():
                return self._hold_until - self._clock.elapsed()
        if self._pending is not None and self._pending.nonce == term.nonce:
            self._hand_over(term, self._pending)
            return 0.0
        if self._serving != term.nonce:
            self._take_over(tenure, term)
        self._settle_claims(term)
        if self._alone:
            works = [self._alone.pop(0)]
        elif self._to_write:
            size = self._rules.batch_size
            works, self._to_write = self._to_write[:size], self._to_write[size:]
        else:
            self._loss = None
            if self.paused:
                return float("inf")
            works = self._gather(term)
        if works:
            self._hand_over(term, Batch(term.nonce, tuple(works)))
            return 0.0
        due_at = self._agenda.next_due()
        return max((due_at - self.now()).total_seconds(), 0.0) if due_at else float("inf")

    # --- Taking over

    def _begin(self, tenure: Tenure) -> None:
        """A new term: on another server than the last holder's, wait until that one can't be dispatching any more."""
        self._known_tenure, self._serving, self._pending = tenure.nonce, "", None
        self._failures, self._failing_since, self._try_at = 0, None, 0.0
        acquired = tenure.acquired
        self._time.join(acquired.leaders_offset)
        others = acquired.previous_holder not in ("", acquired.term.holder)
        now, pause = self._clock.elapsed(), 0.0
        if acquired.server_changed and others:
            # Counted from the first contact with this server: the lease may have been waited for since.
            since = now if tenure.contact_since is None else tenure.contact_since
            pause = max(since + self._rules.changed_server_pause - now, 0.0)
        self._hold_until = now + pause
        if pause:
            self._emit(events.DispatchHeld(pause))

    def _take_over(self, tenure: Tenure, term: Term) -> None:
        """Put every entry on the agenda, from where the ledger says that the cluster is."""
        self._pending, self._to_write, self._alone = None, [], []
        self._dispatcher = self._choose_dispatcher(term)
        ledger = self._dispatcher.ledger
        rows = ledger.read()
        acquired, now = tenure.acquired, self.now()
        if self._assessed != tenure.nonce:
            self._loss = assess(
                gen=term.gen,
                previous_gens=acquired.previous_gens,
                shadow=self._shadow,
                rows=rows,
                facts=ledger.server_facts(now) if acquired.server_changed else None,
                contact_until=tenure.contact_until,
                now=now,
            )
            self._assessed = tenure.nonce
            if self._loss is not None and self._loss.total:
                self._emit(events.StateLost(self._loss.why, self._rules.catch_up_after_loss))
        taken = take_over(
            self._source.slots(),
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
        self._to_write = taken.works
        if self._loss is None:
            self._shadow.forget(rows, now)
        self._find_claims(term)
        agenda, overdue = Agenda(), 0
        for slot in taken.slots:
            self._schedule(agenda, slot, now)
            overdue += slot.due_at is not None and slot.instants is not None and slot.due_at <= now
        self._agenda, self._serving = agenda, term.nonce
        self._redo_claims(term, now)
        self._emit(events.ScheduleReady(len(agenda), overdue, taken.new))

    def _schedule(self, agenda: Agenda, slot: Slot, now: datetime) -> None:
        if slot.once and slot.runs:
            agenda.drop(slot)
            self._source.finished(slot)
            return
        if slot.instants is None:
            agenda.put(slot, now)
            return
        try:
            due_at = slot.instants.next_after(slot.base)
        except Exception as exc:
            self._emit(events.EntryFailed(slot.label, f"its schedule raises {type(exc).__name__}: {exc}", exc))
            agenda.drop(slot)
            return
        if due_at >= FOREVER:
            agenda.drop(slot)
            self._source.finished(slot)
            return
        agenda.put(slot, due_at)

    # --- Open claims

    def _find_claims(self, term: Term) -> None:
        self._claims = self._dispatcher.open_claims(term) if self._dispatcher else []
        self._claims_due_at = self._clock.elapsed() + self._rules.claims_settle_after

    def _redo_claims(self, term: Term, now: datetime) -> None:
        """Occurrences whose policy is to send again, once the first sending can't be under way any more."""
        self._carried = {}
        for claim in list(self._claims):
            slot = self._agenda.get(claim.entry)
            if claim.policy != "republish" or slot is None or slot.row is None or slot.row.raw != claim.row:
                continue
            if slot.row.scheduled_at is not None:
                self._claims.remove(claim)
                wait = 0.0 if claim.nonce == term.nonce else self._rules.claims_settle_after
                self._redo(slot, claim.records, now + timedelta(seconds=wait))

    def _redo(self, slot: Slot, records: Sequence[str], not_before: datetime) -> None:
        """Send the row's own occurrence once more. The last of the records is its own, and is written anew."""
        if slot.row is not None and slot.row.scheduled_at is not None:
            slot.redo = True
            self._carried[slot.id] = tuple(records[:-1])
            self._agenda.put(slot, slot.row.scheduled_at, not_before)

    def _settle_claims(self, term: Term) -> None:
        if self._claims and self._clock.elapsed() >= self._claims_due_at:
            self._give_up(term, self._claims)
            self._claims = []

    def _give_up(self, term: Term, claims: Sequence[OpenClaim]) -> None:
        if self._dispatcher is None:
            return
        for entry, row in self._dispatcher.give_up(term, claims).items():
            slot = self._agenda.get(entry)
            if slot is not None and slot.row is not None and slot.row.task_id == row.task_id:
                slot.row = row
            label = entry if slot is None else slot.label
            self._emit(events.OccurrenceUncertain(label, row.scheduled_at, row.task_id, row.reason))

    def _abandon(self, term: Term, slot: Slot, now: datetime) -> None:
        """It was sent once at least, nobody knows with what success, and could not be sent again for too long."""
        if self._dispatcher is None or slot.row is None:
            return
        claimed = slot.row.raw
        claims = [claim for claim in self._dispatcher.open_claims(term) if claim.row == claimed]
        self._give_up(term, claims)
        slot.redo, slot.failing_since = False, None
        self._carried.pop(slot.id, None)
        self._schedule(self._agenda, slot, now)

    # --- Gathering a batch

    def _gather(self, term: Term) -> list[Work]:
        """What is due. While the broker can't be asked, only what can be settled without it."""
        scribe = Scribe(term, self.now())
        works: list[Work] = []
        unreachable: list[Slot] = []
        away: StoreError | None = None
        for slot in list(self._agenda.pop_due(scribe.now, self._rules.batch_size)):
            try:
                work = self._work_for(scribe, slot, away)
            except StoreError as exc:
                away = exc
                unreachable.append(slot)
                continue
            if work is not None:
                works.append(work)
        for slot in unreachable:
            slot.failing_since = slot.failing_since or scribe.now
            self._agenda.put(slot, slot.due_at or scribe.now)
        if away is not None:
            self._away = (away, len(unreachable))
        return works

    def _work_for(self, scribe: Scribe, slot: Slot, away: StoreError | None) -> Work | None:
        now = scribe.now
        try:
            if slot.instants is None and not slot.redo and not self._seen_due(slot, now):
                return None
            due = slot.settle(now)
        except Exception as exc:
            self._emit(events.EntryFailed(slot.label, f"its schedule raises {type(exc).__name__}: {exc}", exc))
            self._agenda.put(slot, slot.due_at or now, now + timedelta(seconds=_SCHEDULE_RETRY))
            return None
        if due.send is None:
            return scribe.skipped(slot, due.skipped or _only(due, "missed"), due.position)
        if self._given_up(slot, due.send, now):
            if slot.redo:
                self._abandon(scribe.term, slot, now)
                return None
            reason = "not enqueued within the publish deadline"
            return scribe.skipped(slot, _with(due, reason), due.position)
        if away is not None:
            raise away
        try:
            return self._message_for(scribe, slot, due, due.send)
        except StoreError:
            raise
        except Exception as exc:
            why = f"no message could be made: {type(exc).__name__}: {exc}"
            self._emit(events.EntryFailed(slot.label, why, exc))
            return scribe.skipped(slot, _with(due, why[:500]), due.position)

    def _message_for(self, scribe: Scribe, slot: Slot, due: Due, send: datetime) -> Work:
        occurrence = Occurrence(slot.id, send)
        task_id = occurrence.task_id(self._cluster)
        row = scribe.row(slot, due.position, "enqueued", scheduled_at=send, task_id=task_id)
        header = {
            "cluster": self._cluster,
            "entry": slot.id,
            "scheduled_at": occurrence.instant,
            "epoch": scribe.term.epoch,
            "run_count": row.run_count,
        }
        args, kwargs, options = self._source.arguments(slot)
        if self._dispatcher is None:
            raise StoreUnavailable("no way to enqueue has been chosen yet", acted=False)
        message = self._dispatcher.prepare(slot.entry, args, kwargs, with_header(options, header, task_id))
        records = [scribe.enqueued_record(slot, send, task_id)]
        if slot.redo:
            records[:0] = self._carried.get(slot.id, ())
        elif due.skipped is not None:
            records.insert(0, scribe.skip_record(slot, due.skipped))
        operation = Operation(
            slot.id,
            slot.expected,
            row.raw,
            tuple(records),
            message,
            task_id=task_id,
            uncertain=slot.uncertain,
            scheduled_ms=round(send.timestamp() * 1000),
        )
        return Work(slot, operation, row, due)

    def _seen_due(self, slot: Slot, now: datetime) -> bool:
        """Ask an entry whose schedule only it knows; the first instant seen due is the occurrence's."""
        if slot.failing_since is not None:
            return True
        due, ask_in = self._source.check(slot)
        if due:
            slot.due_at = now
        else:
            self._agenda.put(slot, now + timedelta(seconds=ask_in))
        return due

    def _given_up(self, slot: Slot, send: datetime, now: datetime) -> bool:
        """Whether an occurrence that could not be enqueued is too late by now.

        One that was overdue already when this leader first tried, a catch-up, gets the deadline's time from then.
        """
        deadline = self._rules.publish_deadline
        if slot.failing_since is None or deadline is None:
            return False
        late, tried = (now - send).total_seconds(), (now - slot.failing_since).total_seconds()
        overdue_before = late - tried > deadline
        return tried > deadline if overdue_before else late > deadline

    # --- Handing over

    def _hand_over(self, term: Term, batch: Batch) -> None:
        self._pending = batch
        if self._dispatcher is None:
            self._dispatcher = self._choose_dispatcher(term)
        began = self._clock.elapsed()
        try:
            answers = self._dispatcher.submit(term, [work.operation for work in batch.works])
        except FencedOff as exc:
            self._pending, self._serving = None, ""
            self._emit(events.DispatchFenced(term.epoch, len(batch.works), str(exc)))
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
        now = self.now()
        for work, answer in zip(batch.works, answers, strict=True):
            self._take_in(work, answer, now)
        unsent = [answer.detail for answer in answers if answer.kind == "unsent"]
        if unsent:
            self._away = (StoreUnavailable(unsent[-1], acted=False), len(unsent))

    def _set_apart(self, works: Sequence[Work], exc: Exception) -> None:
        """A batch that can't be put into a command, for one entry's sake, must not hold up the others."""
        if len(works) > 1:
            self._alone = [*works, *self._alone]
            return
        slot, now = works[0].slot, self.now()
        self._emit(events.EntryFailed(slot.label, f"it can't be handed over: {type(exc).__name__}: {exc}", exc))
        if slot.entry is not None:
            self._agenda.put(slot, slot.due_at or now, now + timedelta(seconds=_SCHEDULE_RETRY))

    def _take_in(self, work: Work, answer: Answer, now: datetime) -> None:
        slot = work.slot
        if slot.entry is None:
            # Of an entry that is gone. What went wrong is done at the next reading of the schedule.
            if answer.kind in {"done", "mine"}:
                self._source.armed(slot.id)
            return
        match answer.kind:
            case "done" | "mine" | "partial":
                if answer.kind == "partial":
                    self._emit(events.EntryFailed(slot.label, f"not every queue took it: {answer.detail}"))
                self._settled(work, work.row, now)
            case "uncertain":
                self._settled(work, LedgerRow.parse(answer.detail) or work.row, now)
            case "again":
                slot.row, slot.failing_since = LedgerRow.parse(answer.detail) or work.row, slot.failing_since or now
                self._redo(slot, work.operation.records, now + timedelta(seconds=_ENTRY_RETRY))
            case "unsent":
                slot.failing_since = slot.failing_since or now
                self._agenda.put(slot, slot.due_at or now)
            case "paused" | "withdrawn":
                self.paused = self.refused_as_paused = True
                self._agenda.put(slot, slot.due_at or now)
                return
            case "error":
                if slot.failing_since is None:
                    # Once for each occurrence: it is tried again every second.
                    self._emit(events.EntryFailed(slot.label, f"it was refused: {answer.detail}"))
                slot.failing_since = slot.failing_since or now
                self._put_back(slot, now)
            case "moved":
                self._follow(slot, answer.detail, now)

    def _settled(self, work: Work, row: LedgerRow, now: datetime) -> None:
        slot, due = work.slot, work.due
        slot.row, slot.base, slot.failing_since, slot.redo = row, row.base, None, False
        self._carried.pop(slot.id, None)
        self._shadow.learn(slot.id, row.base)
        if due is None:
            # Armed: it is on the agenda already, where the base that was just recorded has put it.
            slot.resumed = False
            self._source.armed(slot.id)
            return
        if due.skipped is not None:
            s = due.skipped
            self._emit(events.OccurrenceSkipped(slot.label, s.first, s.until, s.count, s.reason))
        if due.send is not None and row.verdict == "uncertain":
            self._emit(events.OccurrenceUncertain(slot.label, due.send, row.task_id, row.reason))
        elif due.send is not None:
            self._handovers = 0
            lateness = (now - due.send).total_seconds()
            self._emit(events.Enqueued(slot.label, str(slot.entry.task), row.task_id, due.send, lateness))
        self._source.settled(slot, row)
        self._schedule(self._agenda, slot, now)

    def _put_back(self, slot: Slot, now: datetime) -> None:
        self._agenda.put(slot, slot.due_at or now, now + timedelta(seconds=_ENTRY_RETRY))

    def _follow(self, slot: Slot, raw: str, now: datetime) -> None:
        """Somebody else has written the row: go on from there."""
        row = LedgerRow.parse(raw) if raw else None
        if raw and row is None:
            self._emit(events.EntryFailed(slot.label, "its ledger row is not of this version; left alone"))
            self._agenda.drop(slot)
            return
        before, slot.row, slot.redo = slot.row, row, False
        slot.base = max(slot.base, row.base) if row else slot.base
        self._carried.pop(slot.id, None)
        # An earlier leader may have come to say that it had enqueued what was uncertain.
        if row is None or before is None or row.verdict != "enqueued" or row.task_id != before.task_id:
            self._emit(events.EntryFailed(slot.label, "its ledger row was changed by somebody else; following it"))
        self._schedule(self._agenda, slot, now)

    def _postpone(self, error: StoreError, size: int) -> float:
        """After a failure of a whole batch of this size: back off, with jitter, and say so once."""
        now = self._clock.elapsed()
        self._failures += 1
        self._failing_since = now if self._failing_since is None else self._failing_since
        if self._failures == 1:
            self._emit(events.DispatchFailed(size, str(error)))
        if now - self._failing_since > self._rules.handover_after * min(2**self._handovers, _MOST_PATIENCE):
            self._failing_since = None
            self._handovers = min(self._handovers + 1, _MOST_PATIENCE)
            raise BrokerOutOfReach(str(error))
        seconds: float = random.uniform(0.5, 1.0) * min(0.05 * 2 ** min(self._failures, 10), _LONGEST_BACKOFF)
        self._try_at = now + seconds
        return seconds


def _only(due: Due, reason: str) -> Skipped:
    """The one instant that is due, as a range."""
    return Skipped(due.position, due.position + timedelta(microseconds=1), 1, reason)


def _with(due: Due, reason: str) -> Skipped:
    """What is due, passed over with what was to be passed over anyway."""
    only = _only(due, reason)
    before = due.skipped
    if before is None:
        return only
    return Skipped(before.first, only.until, before.count + 1 if before.count >= 0 else -1, reason)
