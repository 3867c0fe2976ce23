"""The leader's work: takes over the ledger, then enqueues what is due, batch by batch, in order of due time.

Nothing is believed before Redis has answered. A batch whose reply was lost is submitted again as it is, which is safe;
when the term ends first, it is forgotten, and the next leader reads in the ledger what became of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from ha_beat import events
from ha_beat.agenda import Agenda, Slot
from ha_beat.clock import Clock
from ha_beat.dispatch import Answer, Dispatcher, FencedOff, Operation
from ha_beat.dispatch.header import with_header
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.lease import Term
from ha_beat.ledger import Ledger, LedgerRow, Verdict, from_micros
from ha_beat.occurrence import Due, Occurrence, Skipped

#: Seconds until an entry that failed alone is tried again.
_ENTRY_RETRY = 1.0

#: Seconds, at most, until a batch that failed as a whole is tried again.
_LONGEST_BACKOFF = 1.0


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


@dataclass(frozen=True, slots=True)
class _Work:
    """One operation of a batch and what it is about."""

    slot: Slot
    operation: Operation
    row: LedgerRow
    due: Due | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    nonce: str
    works: tuple[_Work, ...]


class Enqueuer:
    """Works off the agenda under a term. Used by the main loop only."""

    def __init__(
        self,
        source: ScheduleSource,
        dispatcher: Dispatcher,
        ledger: Ledger,
        cluster: str,
        clock: Clock,
        emit: Callable[[events.Event], None],
        *,
        batch_size: int = 100,
        publish_deadline: float | None = 60.0,
    ) -> None:
        self._source = source
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._cluster = cluster
        self._clock = clock
        self._emit = emit
        self._batch_size = batch_size
        self._publish_deadline = publish_deadline
        self._agenda = Agenda()
        self._serving = ""
        self._pending: _Batch | None = None
        self._to_arm: list[_Work] = []
        self._try_at = 0.0
        self._failures = 0
        #: While the cluster is paused nothing is gathered. Redis may know before this does: see ``refused_as_paused``.
        self.paused = False
        self.refused_as_paused = False

    @property
    def agenda(self) -> Agenda:
        return self._agenda

    def now(self) -> datetime:
        """The scheduling time, in UTC."""
        return from_micros(round(self._clock.wall() * 1_000_000))

    def serves(self, term: Term) -> bool:
        """Whether the agenda is this term's."""
        return self._serving == term.nonce

    def reload(self) -> None:
        """The schedule has changed: read it again, with the ledger, before the next batch."""
        self._serving = ""

    def advance(self, term: Term) -> float:
        """Do one batch of work. Returns for how many seconds there is nothing to do.

        Raises:
            FencedOff: the term is over.
        """
        waiting = self._try_at - self._clock.elapsed()
        if waiting > 0:
            return waiting
        try:
            idle = self._advance(term)
        except StoreError as exc:
            return self._postpone(str(exc))
        self._failures = 0
        return idle

    def _advance(self, term: Term) -> float:
        if self._pending is not None and self._pending.nonce == term.nonce:
            self._hand_over(term, self._pending)
            return 0.0
        if self._serving != term.nonce:
            self._take_over(term)
        if self._to_arm:
            works, self._to_arm = self._to_arm[: self._batch_size], self._to_arm[self._batch_size :]
        elif self.paused:
            return float("inf")
        else:
            works = self._gather(term)
        if works:
            self._hand_over(term, _Batch(term.nonce, tuple(works)))
            return 0.0
        due_at = self._agenda.next_due()
        return max((due_at - self.now()).total_seconds(), 0.0) if due_at else float("inf")

    # --- Taking over

    def _take_over(self, term: Term) -> None:
        """Put every entry on the agenda, from where the ledger says that the cluster is."""
        self._pending, self._to_arm, agenda = None, [], Agenda()
        rows = self._ledger.read()
        now = self.now()
        overdue = 0
        for slot in self._source.slots():
            raw = rows.get(slot.id)
            row = LedgerRow.parse(raw) if raw is not None else None
            if raw is not None and row is None:
                self._emit(events.EntryFailed(slot.id, "its ledger row is not of this version; left alone"))
                continue
            slot.row = row
            if row is not None and row.signature == slot.signature:
                slot.base = max(slot.base, row.base)
            else:
                # New, or edited: an edited entry does not owe the instants of its new schedule before the edit.
                slot.base = max(slot.base, row.base, now) if row is not None else _or_now(slot.base, now)
                self._to_arm.append(self._arming(term, slot, now))
            self._schedule(agenda, slot, now)
            overdue += slot.due_at is not None and slot.instants is not None and slot.due_at <= now
        self._agenda, self._serving = agenda, term.nonce
        self._emit(events.ScheduleReady(len(agenda), overdue, len(self._to_arm)))

    def _arming(self, term: Term, slot: Slot, now: datetime) -> _Work:
        """From now on the cluster owes this entry its occurrences, whoever leads."""
        row = self._row(term, slot, slot.base, "armed", now)
        return _Work(slot, Operation(slot.id, slot.expected, row.raw), row)

    def _schedule(self, agenda: Agenda, slot: Slot, now: datetime) -> None:
        if slot.instants is None:
            agenda.put(slot, now)
            return
        try:
            due_at = slot.instants.next_after(slot.base)
        except Exception as exc:
            self._emit(events.EntryFailed(slot.id, f"its schedule raises {type(exc).__name__}: {exc}", exc))
            agenda.drop(slot)
            return
        agenda.put(slot, due_at)

    # --- Gathering a batch

    def _gather(self, term: Term) -> list[_Work]:
        now = self.now()
        slots = list(self._agenda.pop_due(now, self._batch_size))
        works: list[_Work] = []
        try:
            for slot in slots:
                work = self._work_for(term, slot, now)
                if work is not None:
                    works.append(work)
        except StoreError:
            # The broker can't be asked about a queue; none of the batch has left.
            for slot in slots:
                if slot.due_at is not None:
                    self._agenda.put(slot, slot.due_at)
            raise
        return works

    def _work_for(self, term: Term, slot: Slot, now: datetime) -> _Work | None:
        try:
            if slot.instants is None and not self._seen_due(slot, now):
                return None
            due = slot.settle(now)
        except Exception as exc:
            self._emit(events.EntryFailed(slot.id, f"its schedule raises {type(exc).__name__}: {exc}", exc))
            self._agenda.put(slot, slot.due_at or now, now + timedelta(seconds=60))
            return None
        if due.send is None:
            return self._recorded(term, slot, due, now)
        if self._given_up(slot, now):
            return self._recorded(term, slot, due, now, reason="not enqueued within the publish deadline")
        occurrence = Occurrence(slot.id, due.send)
        task_id = occurrence.task_id(self._cluster)
        header = {
            "cluster": self._cluster,
            "entry": slot.id,
            "scheduled_at": occurrence.instant,
            "epoch": term.epoch,
            "run_count": (slot.row.run_count if slot.row else 0) + 1,
        }
        try:
            args, kwargs, options = self._source.arguments(slot)
            message = self._dispatcher.prepare(slot.entry, args, kwargs, with_header(options, header, task_id))
        except StoreUnavailable:
            raise
        except Exception as exc:
            why = f"{type(exc).__name__}: {exc}"
            self._emit(events.EntryFailed(slot.id, f"no message could be made of it: {why}", exc))
            return self._recorded(term, slot, due, now, reason=f"no message could be made: {why}"[:500])
        row = self._row(term, slot, due.send, "enqueued", now, scheduled_at=due.send, task_id=task_id)
        records = [self._record(term, row, slot.id, due.send, now)]
        if due.skipped is not None:
            records.insert(0, self._skip_record(term, due.skipped, slot.id, now))
        return _Work(slot, Operation(slot.id, slot.expected, row.raw, tuple(records), message), row, due)

    def _seen_due(self, slot: Slot, now: datetime) -> bool:
        """Ask an entry whose schedule only it knows; the first instant seen due is the occurrence's."""
        due, ask_in = self._source.check(slot)
        if due:
            slot.due_at = now
        else:
            self._agenda.put(slot, now + timedelta(seconds=ask_in))
        return due

    def _given_up(self, slot: Slot, now: datetime) -> bool:
        if slot.failing_since is None or self._publish_deadline is None:
            return False
        return (now - slot.failing_since).total_seconds() > self._publish_deadline

    def _recorded(self, term: Term, slot: Slot, due: Due, now: datetime, reason: str = "") -> _Work:
        """Give what is due its verdict without a message; ``reason`` is that of the instant not sent."""
        skipped = due.skipped
        if due.send is not None or skipped is None:
            first = skipped.first if skipped else due.position
            before = skipped.count if skipped else 0
            until = due.position + timedelta(microseconds=1)
            skipped = Skipped(first, until, before + 1 if before >= 0 else -1, reason)
        row = self._row(term, slot, due.position, "skipped", now, scheduled_at=due.position, reason=skipped.reason)
        record = self._skip_record(term, skipped, slot.id, now)
        settled = Due(None, due.position, skipped)
        return _Work(slot, Operation(slot.id, slot.expected, row.raw, (record,)), row, settled)

    def _row(
        self,
        term: Term,
        slot: Slot,
        base: datetime,
        verdict: Verdict,
        now: datetime,
        *,
        scheduled_at: datetime | None = None,
        reason: str = "",
        task_id: str = "",
    ) -> LedgerRow:
        before = slot.row
        row = LedgerRow(
            base=base,
            verdict=verdict,
            scheduled_at=scheduled_at or (before.scheduled_at if before else None),
            rev=(before.rev if before else 0) + 1,
            dispatched_ms=round(now.timestamp() * 1000),
            epoch=term.epoch,
            nonce=term.nonce,
            run_count=(before.run_count if before else 0) + (verdict == "enqueued"),
            reason=reason,
            task_id=task_id,
            signature=slot.signature,
        )
        return replace(row, raw=row.encoded())

    def _record(self, term: Term, row: LedgerRow, entry: str, at: datetime, now: datetime) -> str:
        return json.dumps(
            {
                "verdict": row.verdict,
                "entry": entry,
                "at": Occurrence(entry, at).instant,
                "ms": round(now.timestamp() * 1000),
                "epoch": term.epoch,
                "by": term.holder,
                "id": row.task_id,
            }
        )

    def _skip_record(self, term: Term, skipped: Skipped, entry: str, now: datetime) -> str:
        return json.dumps(
            {
                "verdict": "skipped",
                "entry": entry,
                "from": Occurrence(entry, skipped.first).instant,
                "until": Occurrence(entry, skipped.until).instant,
                "count": skipped.count,
                "why": skipped.reason,
                "ms": round(now.timestamp() * 1000),
                "epoch": term.epoch,
                "by": term.holder,
            }
        )

    # --- Handing over

    def _hand_over(self, term: Term, batch: _Batch) -> None:
        self._pending = batch
        began = self._clock.elapsed()
        try:
            answers = self._dispatcher.submit(term, [work.operation for work in batch.works])
        except FencedOff as exc:
            self._pending, self._serving = None, ""
            self._emit(events.DispatchFenced(term.epoch, len(batch.works), str(exc)))
            raise
        self._pending = None
        mine = sum(answer.kind == "mine" for answer in answers)
        self._emit(events.BatchDispatched(len(answers), self._clock.elapsed() - began, mine))
        now = self.now()
        for work, answer in zip(batch.works, answers, strict=True):
            self._take_in(work, answer, now)

    def _take_in(self, work: _Work, answer: Answer, now: datetime) -> None:
        slot = work.slot
        match answer.kind:
            case "done" | "mine" | "partial":
                slot.row, slot.base, slot.failing_since = work.row, work.row.base, None
                if answer.kind == "partial":
                    self._emit(events.EntryFailed(slot.id, f"not every queue took it: {answer.detail}"))
                self._say(work, now)
            case "moved":
                row = LedgerRow.parse(answer.detail) if answer.detail else None
                if answer.detail and row is None:
                    self._emit(events.EntryFailed(slot.id, "its ledger row is not of this version; left alone"))
                    self._agenda.drop(slot)
                    return
                slot.row = row
                slot.base = max(slot.base, row.base) if row else slot.base
                self._emit(events.EntryFailed(slot.id, "its ledger row was changed by somebody else; following it"))
                self._schedule(self._agenda, slot, now)
                return
            case "error":
                self._emit(events.EntryFailed(slot.id, f"Redis refused it: {answer.detail}"))
                slot.failing_since = slot.failing_since or now
                due_at = slot.due_at or now
                self._agenda.put(slot, due_at, now + timedelta(seconds=_ENTRY_RETRY))
                return
            case "paused" | "withdrawn":
                self.paused = self.refused_as_paused = True
                self._agenda.put(slot, slot.due_at or now)
                return
        self._schedule_next(work, now)

    def _schedule_next(self, work: _Work, now: datetime) -> None:
        if work.due is None:
            # Armed: it is on the agenda already, where the base that was just recorded has put it.
            return
        self._source.settled(work.slot, work.row)
        self._schedule(self._agenda, work.slot, now)

    def _say(self, work: _Work, now: datetime) -> None:
        due, slot = work.due, work.slot
        if due is None:
            return
        if due.skipped is not None:
            s = due.skipped
            self._emit(events.OccurrenceSkipped(slot.id, s.first, s.until, s.count, s.reason))
        if due.send is not None:
            lateness = (now - due.send).total_seconds()
            task = str(slot.entry.task)
            self._emit(events.Enqueued(slot.id, task, work.row.task_id, due.send, lateness))

    def _postpone(self, why: str) -> float:
        """After a failure of the whole batch: back off, with jitter, and say so once."""
        self._failures += 1
        if self._failures == 1:
            size = len(self._pending.works) if self._pending else 0
            self._emit(events.DispatchFailed(size, why))
        seconds: float = random.uniform(0.5, 1.0) * min(0.05 * 2 ** min(self._failures, 10), _LONGEST_BACKOFF)
        self._try_at = self._clock.elapsed() + seconds
        return seconds


def _or_now(base: datetime, now: datetime) -> datetime:
    """The entry's own last run where its store has one."""
    return base if base > NEVER else now


#: The ``base`` of an entry whose own store knows of no run.
NEVER = from_micros(0)
