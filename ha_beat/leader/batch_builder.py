"""Makes operations of what is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.dispatch import Dispatcher, Operation
from ha_beat.errors import StoreError
from ha_beat.headers import header_of, with_header
from ha_beat.leader.due_queue import Agenda, Slot
from ha_beat.leader.ledger_writer import Scribe, Work
from ha_beat.leader.open_claims import Claims
from ha_beat.leader.options import Rules
from ha_beat.leader.planner import Planner, ScheduleSource
from ha_beat.reasons import EntryFault, SkipReason, Verdict
from ha_beat.schedule.misfire import Decision, Skipped
from ha_beat.schedule.occurrence import Occurrence

#: Seconds until an entry whose schedule raises is asked again.
SCHEDULE_RETRY = 60.0

#: A batch is full with so many characters of messages: Redis does nothing else for the 30 ms or so that they take.
MOST_CHARACTERS = 4_000_000


@dataclass(slots=True)
class Gathered:
    """The operations of a batch. ``unreachable`` entries had to wait for the broker, which was ``away``."""

    works: list[Work] = field(default_factory=list)
    unreachable: list[Slot] = field(default_factory=list)
    away: StoreError | None = None


class Gatherer:
    """Takes what is due off an agenda."""

    def __init__(
        self,
        source: ScheduleSource,
        planner: Planner,
        claims: Claims,
        cluster: str,
        emit: Callable[[events.Event], None],
        rules: Rules,
    ) -> None:
        self._source = source
        self._planner = planner
        self._claims = claims
        self._cluster = cluster
        self._emit = emit
        self._rules = rules

    def gather(self, scribe: Scribe, agenda: Agenda, dispatcher: Dispatcher) -> Gathered:
        """A batch of what is due. While the broker can't be asked, only what can be settled without it."""
        gathered, room = Gathered(), MOST_CHARACTERS
        for slot in list(agenda.pop_due(scribe.now, self._rules.batch_size)):
            if room <= 0:
                agenda.put(slot, slot.due_at or scribe.now)
                continue
            try:
                work = self._work_for(scribe, slot, agenda, dispatcher, gathered.away)
            except StoreError as exc:
                gathered.away = exc
                gathered.unreachable.append(slot)
                continue
            if work is not None:
                gathered.works.append(work)
                room -= work.operation.size
        for slot in gathered.unreachable:
            slot.failing_since = slot.failing_since or scribe.now
            agenda.put(slot, slot.due_at or scribe.now)
        return gathered

    def _work_for(
        self, scribe: Scribe, slot: Slot, agenda: Agenda, dispatcher: Dispatcher, away: StoreError | None
    ) -> Work | None:
        now = scribe.now
        try:
            if slot.instants is None and not slot.redo and not self._seen_due(slot, agenda, now):
                return None
            due = slot.decide(now)
        except Exception as exc:
            self._emit(events.EntryFailed.raised(slot.label, EntryFault.SCHEDULE_RAISES, exc))
            agenda.put(slot, slot.due_at or now, now + timedelta(seconds=SCHEDULE_RETRY))
            return None
        if due.send is None:
            return scribe.skipped(slot, due.skipped or _only(due, SkipReason.MISSED), due.position)
        if self._given_up(slot, due.send, now):
            if slot.redo:
                self._claims.abandon(dispatcher, agenda, scribe.term, slot)
                self._planner.plan(agenda, slot, now)
                return None
            return scribe.skipped(slot, _with(due, SkipReason.NOT_PUBLISHED, slot.detail), due.position)
        if away is not None:
            raise away
        try:
            return self._message_for(scribe, slot, due, due.send, dispatcher)
        except StoreError:
            raise
        except Exception as exc:
            failed = events.EntryFailed.raised(slot.label, EntryFault.MESSAGE_NOT_BUILT, exc)
            self._emit(failed)
            return scribe.skipped(slot, _with(due, SkipReason.NO_MESSAGE, failed.detail[:500]), due.position)

    def _message_for(self, scribe: Scribe, slot: Slot, due: Decision, send: datetime, dispatcher: Dispatcher) -> Work:
        occurrence = Occurrence(slot.id, send)
        task_id = occurrence.task_id(self._cluster)
        row = scribe.row(slot, due.position, Verdict.ENQUEUED, scheduled_at=send, task_id=task_id)
        epoch = scribe.term.epoch
        header = header_of(self._cluster, slot.id, occurrence.instant, epoch=epoch, run_count=row.run_count)
        args, kwargs, options = self._source.arguments(slot)
        message = dispatcher.prepare(slot.entry, args, kwargs, with_header(options, header, task_id))
        records = [scribe.enqueued_record(slot, send, task_id)]
        if slot.redo:
            records[:0] = self._claims.carried(slot)
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

    def _seen_due(self, slot: Slot, agenda: Agenda, now: datetime) -> bool:
        """Ask an entry whose schedule only it knows; the first instant seen due is the occurrence's."""
        if slot.failing_since is not None:
            return True
        due, ask_in = self._source.check(slot)
        if due:
            slot.due_at, slot.ask_in = now, ask_in
        else:
            agenda.put(slot, now + timedelta(seconds=ask_in))
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


def _only(due: Decision, reason: SkipReason, detail: str = "") -> Skipped:
    """The one instant that is due, as a range."""
    return Skipped(due.position, due.position + timedelta(microseconds=1), 1, reason, detail)


def _with(due: Decision, reason: SkipReason, detail: str) -> Skipped:
    """What is due, passed over with what was to be passed over anyway."""
    only = _only(due, reason, detail)
    before = due.skipped
    if before is None:
        return only
    return Skipped(before.first, only.until, before.count + 1 if before.count >= 0 else -1, reason, detail)
