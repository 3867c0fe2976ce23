"""Backfill: the past instants of an entry that may be enqueued by the journal, and the handler that enqueues them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from ha_beat.budget import Pace
from ha_beat.clock import from_micros
from ha_beat.dispatch import Answer
from ha_beat.leader.entry import EntryState
from ha_beat.leader.requests.outcome import RequestOutcome, RequestRefused, Steps, names
from ha_beat.leader.requests.requested_messages import SENT, Order, RequestedMessages, Step
from ha_beat.reasons import AnswerKind, BackfillOutcome, MessageKind, ReplyCode, SkipReason, Verdict
from ha_beat.schedule.occurrence import Occurrence
from ha_beat.schedule.recurrence import Recurrence, first_from
from ha_beat.store.journal import Journal, VerdictRecord
from ha_beat.store.lease import Term
from ha_beat.store.request_queue import Request

#: Most instants that one backfill may cover.
BACKFILL_LIMIT = 1000

#: Most messages that one script enqueues.
_BATCH = 50

#: Difference between the replicas' clocks that a search of the journal allows for.
_CLOCK_TOLERANCE = timedelta(hours=1)

_COUNTED = frozenset({BackfillOutcome.PLANNED, BackfillOutcome.ENQUEUED, BackfillOutcome.ENQUEUED_EARLIER})


@dataclass(frozen=True, slots=True)
class BackfillInstant:
    """Due instant of a backfill, numbered from 1. ``detail`` is free text for a person."""

    number: int
    at: datetime
    outcome: BackfillOutcome
    detail: str = ""


def due_between(recurrence: Recurrence, base: datetime, since: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the due instants in ``[since, until)``, in UTC. ``base`` is a known due instant."""
    at = first_from(recurrence, base, since)
    while at < until:
        yield at
        at = recurrence.next_after(at)


def assess_instants(
    instants: Sequence[datetime], base: datetime, known: Iterable[VerdictRecord], request: str, *, force: bool
) -> list[BackfillInstant]:
    """Return for each instant, in order, whether it may be enqueued.

    ``base`` is the entry's position, ``known`` the journal's records about it, ``request`` the id of this request.
    """
    records: list[list[VerdictRecord]] = [[] for _ in instants]
    for record in known:
        for place in range(bisect_left(instants, record.first), bisect_left(instants, record.until)):
            records[place].append(record)
    return [
        BackfillInstant(number, at, *_assess(at, base, about, request, force=force))
        for number, (at, about) in enumerate(zip(instants, records, strict=True), 1)
    ]


def _assess(
    at: datetime, base: datetime, records: Sequence[VerdictRecord], request: str, *, force: bool
) -> tuple[BackfillOutcome, str]:
    if at > base:
        return BackfillOutcome.NOT_REACHED, ""
    for record in records:
        if record.verdict == Verdict.ENQUEUED:
            if record.data.get("request") == request:
                return BackfillOutcome.ENQUEUED_EARLIER, ""
            return BackfillOutcome.ALREADY_ENQUEUED, f"{record.written_at:%Y-%m-%d %H:%M:%S}Z, {record.task_id}"
    if force or (records and all(_not_enqueued(record) for record in records)):
        return BackfillOutcome.PLANNED, ""
    return (BackfillOutcome.OUTCOME_UNKNOWN if records else BackfillOutcome.NOT_IN_JOURNAL), ""


def _not_enqueued(record: VerdictRecord) -> bool:
    """True if the record shows that its instants were not enqueued. After a loss of state, a skip does not."""
    return record.verdict == Verdict.SKIPPED and record.reason != SkipReason.STATE_LOSS  # guard: backfill-in-doubt


class BackfillHandler:
    """Handler of ``backfill``: enqueue past instants of an entry, or plan it.

    Each page of the journal and each batch of messages is a step.
    """

    def __init__(self, messages: RequestedMessages, journal: Journal, pace: Pace) -> None:
        self._messages = messages
        self._journal = journal
        self._pace = pace

    def __call__(self, term: Term, request: Request) -> Steps:
        """Carry out the request."""
        state = self._messages.entry(request)
        dry_run = bool(request.args.get("dry_run"))
        instants = yield from self._assessed(request, state)
        if not dry_run:
            instants = yield from self._enqueue(term, request, state, instants)
        count = sum(each.outcome in _COUNTED for each in instants)
        if count < len(instants):
            code = ReplyCode.BACKFILL_INCOMPLETE
        else:
            code = ReplyCode.BACKFILL_PLANNED if dry_run else ReplyCode.BACKFILLED
        data = {
            "entry": state.label,
            "dry_run": dry_run,
            "count": count,
            "instants": [self._as_data(state, each) for each in instants],
        }
        record = {"event": "backfill", **names(state), "count": count, "of": len(instants)}
        return RequestOutcome(code, data, record=None if dry_run else record)

    def _as_data(self, state: EntryState, each: BackfillInstant) -> dict[str, Any]:
        return {
            "at": Occurrence(state.id, each.at).instant,
            "outcome": each.outcome,
            "detail": each.detail,
            "task_id": self._messages.task_id(state, each.at),
        }

    def _assessed(self, request: Request, state: EntryState) -> Generator[bool, None, list[BackfillInstant]]:
        if state.entry.recurrence is None:
            raise RequestRefused(ReplyCode.NO_PAST_INSTANTS, entry=state.label)
        since, until = _instant_argument(request, "from"), _instant_argument(request, "to")
        found = list(islice(due_between(state.entry.recurrence, state.position, since, until), BACKFILL_LIMIT + 1))
        if len(found) > BACKFILL_LIMIT:
            raise RequestRefused(ReplyCode.TOO_MANY_INSTANTS, limit=BACKFILL_LIMIT)
        if not found:
            return []
        # Fixed now, because the pages lack what the schedule enqueues during the search.
        base = state.position
        known: list[VerdictRecord] = []
        for page in self._journal.pages(found[0] - _CLOCK_TOLERANCE, mentions=state.id):
            known += (
                record
                for record in page
                if isinstance(record, VerdictRecord)
                and record.entry == state.id
                and record.kind != MessageKind.MANUAL
                and record.until > found[0]
                and record.first <= found[-1]
            )
            yield False
        return assess_instants(found, base, known, request.id, force=bool(request.args.get("force")))

    def _enqueue(
        self, term: Term, request: Request, state: EntryState, instants: Sequence[BackfillInstant]
    ) -> Generator[bool, None, list[BackfillInstant]]:
        order, found = Order(term, request, state, MessageKind.BACKFILL), {each.number: each for each in instants}
        begun = self._messages.begun_before(request)
        for each in instants:
            if each.number <= begun and each.outcome is BackfillOutcome.PLANNED:
                found[each.number] = replace(each, outcome=BackfillOutcome.BEGUN_EARLIER)
        planned = [each for each in found.values() if each.outcome is BackfillOutcome.PLANNED]
        while planned:
            batch = planned[:_BATCH]
            steps = [Step(each.number, each.at, self._messages.task_id(state, each.at)) for each in batch]
            answers = self._messages.send(order, steps, self._pace.begin())
            for each, answer in zip(batch, answers, strict=False):
                outcome, detail = _outcome_of(answer)
                found[each.number] = replace(each, outcome=outcome, detail=detail)
            planned = planned[len(answers) :]
            yield not answers
        return list(found.values())


def _outcome_of(answer: Answer) -> tuple[BackfillOutcome, str]:
    if answer.kind in SENT:
        return BackfillOutcome.ENQUEUED, ""
    match answer.kind:
        case AnswerKind.WITHDRAWN:
            return BackfillOutcome.WITHDRAWN, ""
        case AnswerKind.UNCERTAIN | AnswerKind.AGAIN:
            return BackfillOutcome.UNCERTAIN, ""
        case AnswerKind.DECLINED:
            return BackfillOutcome.DECLINED, ""
        case _:
            return BackfillOutcome.NOT_SENT, answer.detail or answer.kind


def _instant_argument(request: Request, name: str) -> datetime:
    micros = request.args.get(name)
    if not isinstance(micros, int):
        raise RequestRefused(ReplyCode.INVALID_ARGUMENT, argument=name)
    return from_micros(micros)
