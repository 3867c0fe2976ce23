"""Carries out what is asked of the leader, on its main loop, between two batches.

Whatever a request changes is changed by a script that proves the term and that the request still waits: a request is
carried out once, by whoever leads, or not at all.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Protocol

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.dispatch import Answer, Dispatcher, FencedOff, Operation
from ha_beat.errors import StoreError, StoreUnavailable
from ha_beat.headers import header_of, with_header
from ha_beat.leader import Enqueuer, ScheduleSource
from ha_beat.leader.backfill import Instant, due_between, judged
from ha_beat.leader.due_queue import Slot
from ha_beat.reasons import MessageKind, TermEnd
from ha_beat.schedule.occurrence import Occurrence
from ha_beat.store.journal import Journal, VerdictRecord
from ha_beat.store.lease import Term
from ha_beat.store.ledger import from_micros
from ha_beat.store.request_queue import MetaChange, Pause, Reply, Request, Requests
from ha_beat.store.shadow import Shadow

#: The most instants that one backfill takes.
BACKFILL_LIMIT = 1000

#: Messages of a backfill that one script enqueues.
_BATCH = 50

#: Clocks of replicas may be apart by so much when the journal is searched for an instant.
_CLOCK_ROOM = timedelta(hours=1)

#: Actions that send messages.
_NEED_THE_BROKER = frozenset({"run", "backfill"})

#: Seconds until Redis is asked again after it failed.
_RETRY = 0.25

#: Failing entries that are remembered for the report.
_FAILING = 50

#: Entries that one answer lists at most.
_LISTED = 1000


class StepsDown(Protocol):
    """What this needs of the elector."""

    def step_down(self, reason: TermEnd, *, detail: str = "", preferred: str = "") -> None: ...

    def progress(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Refusal(Exception):
    """A request that can't be done as asked; ``line`` says why."""

    line: str
    data: Mapping[str, Any]


def _refuse(line: str, **data: Any) -> _Refusal:
    return _Refusal(line, data)


class Control:
    """The leader's ear for requests. Used by the main loop only."""

    def __init__(
        self,
        requests: Requests,
        journal: Journal,
        enqueuer: Enqueuer,
        source: ScheduleSource,
        elector: StepsDown,
        shadow: Shadow,
        cluster: str,
        clock: Clock,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._requests = requests
        self._journal = journal
        self._enqueuer = enqueuer
        self._source = source
        self._elector = elector
        self._cluster = cluster
        self._clock = clock
        self._emit = emit
        self._shadow = shadow
        self._path = {"path": "", "why": ""}
        self._failing: dict[str, str] = {}
        self._try_at = 0.0
        #: The requests that this process has begun to carry out under the term, and how far others had come before.
        self._begun: dict[str, int] = {}
        #: Answers about messages that have not got through: what was done can't be told by trying it again.
        self._undelivered: dict[str, tuple[Reply, Mapping[str, Any] | None]] = {}
        self._known_to = ""
        self._pause: Pause | None = None
        self._unheard = False

    @property
    def pause(self) -> Pause | None:
        """The pause in force, as this replica last knew while it led."""
        return self._pause

    def note(self, event: events.Event) -> None:
        """Take in an event, for the report."""
        match event:
            case events.PathChosen(path, reason):
                self._path = {"path": path, "why": reason}
            case events.EntryFailed(entry, why) if len(self._failing) < _FAILING:
                self._failing[entry] = why
            case events.Enqueued(entry):
                self._failing.pop(entry, None)
            case events.TermStarted():
                self._failing.clear()
            case _:
                pass

    def attend(self, term: Term, *, called: bool) -> float:
        """Learn whether the cluster is paused, and serve what is asked. Costs nothing while there is nothing to do.

        Returns:
            In how many seconds this has to be called again, however little is due.

        Raises:
            FencedOff: the term is over.
        """
        self._unheard = self._unheard or called
        if self._clock.elapsed() < self._try_at:
            return _RETRY
        try:
            if self._known_to != term.nonce or self._enqueuer.refused_as_paused:
                self._learn_pause(term)
            if self._unheard and self._enqueuer.serves(term):
                self._serve(term)
                self._unheard = False
        except StoreError:
            # The enqueuer, which asks the same Redis, says so.
            self._try_at = self._clock.elapsed() + _RETRY
        return _RETRY if self._unheard else float("inf")

    # --- Pause

    def _learn_pause(self, term: Term) -> None:
        new_term = self._known_to != term.nonce
        pause = self._requests.pause()
        shadow = self._shadow
        if pause is None and shadow.paused and shadow.paused_gen != term.gen:  # guard: pause-kept
            self._requests.keep_pause(term, shadow.paused)
            pause = Pause.parse(shadow.paused)
        self._remember(term, pause)
        if pause is not None and (new_term or self._pause is None):
            self._emit(events.Paused(pause.since, pause.by, pause.reason, found=new_term))
        elif pause is None and self._enqueuer.paused:
            self._enqueuer.reload()
        if new_term:
            self._begun.clear()
            self._undelivered.clear()
        self._pause, self._known_to = pause, term.nonce
        self._enqueuer.paused, self._enqueuer.refused_as_paused = pause is not None, False

    def _remember(self, term: Term, pause: Pause | None) -> None:
        """For the day on which the ledger is lost: this replica may be the next to lead, or the only one."""
        self._shadow.paused, self._shadow.paused_gen = pause.encoded() if pause else "", term.gen

    # --- Requests

    def _serve(self, term: Term) -> None:
        waiting, server_ms = self._requests.waiting()
        away: StoreError | None = None
        for request in waiting:
            if away is not None and request.action in _NEED_THE_BROKER:
                continue
            if request.deadline_ms and request.deadline_ms < server_ms:
                self._requests.withdraw(request.id)
                self._undelivered.pop(request.id, None)
                continue
            reply, record = self._undelivered.get(request.id, (None, None))  # guard: reply-repeated
            try:
                if reply is not None:
                    self._answer(term, request, reply, record=record)
                else:
                    self._carry_out(term, request)
            except _Refusal as refusal:
                self._answer(term, request, Reply(ok=False, line=refusal.line, data=refusal.data))
            except StoreError as exc:
                # If it is the broker alone that does not answer, the others need not wait for it.
                if away is not None or request.action not in _NEED_THE_BROKER:
                    raise
                away = exc  # guard: request-broker-away
            except FencedOff:
                raise
            except Exception as exc:
                self._answer(term, request, Reply(ok=False, line=f"it failed: {type(exc).__name__}: {exc}"))
            self._elector.progress()
        if away is not None:
            raise away

    def _carry_out(self, term: Term, request: Request) -> None:
        match request.action:
            case "step_down":
                self._step_down(term, request)
            case "pause":
                self._pause_cluster(term, request)
            case "resume":
                self._resume_cluster(term, request)
            case "run":
                self._run(term, request)
            case "backfill":
                self._backfill(term, request)
            case "next":
                self._answer(term, request, Reply(ok=True, line="", data={"entries": list(self._upcoming(request))}))
            case "report":
                self._answer(term, request, Reply(ok=True, line="", data=self._report_of_leader()))
            case action:
                raise _refuse(f"the leader's version of ha_beat does not know how to {action or 'read this request'}")

    def _answer(
        self,
        term: Term,
        request: Request,
        reply: Reply,
        *,
        record: Mapping[str, Any] | None = None,
        change: MetaChange | None = None,
    ) -> None:
        if request.action in _NEED_THE_BROKER:
            self._undelivered[request.id] = (reply, record)
        complete = Reply(reply.ok, reply.line, reply.data, term.holder, term.epoch)
        written = self._record(term, request, {"kind": "control", **record}) if record else ""
        reason = self._requests.answer(term, request, complete, record=written, change=change)
        if reason is not None:
            raise FencedOff(reason)
        self._begun.pop(request.id, None)
        self._undelivered.pop(request.id, None)
        if request.action not in ("next", "report"):
            self._emit(events.RequestAnswered(request.action, request.by, reply.ok, reply.line))

    def _record(self, term: Term, request: Request, content: Mapping[str, Any]) -> str:
        return json.dumps(
            {
                **content,
                "ms": self._ms(),
                "epoch": term.epoch,
                "by": term.holder,
                "asked_by": request.by,
                "request": request.id,
            }
        )

    def _ms(self) -> int:
        return round(self._enqueuer.now().timestamp() * 1000)

    # --- Step down, pause, resume

    def _step_down(self, term: Term, request: Request) -> None:
        preferred = str(request.args.get("to") or "")
        if preferred == term.holder:
            raise _refuse(f"{preferred} leads already")
        # The answer first: whoever asked shall have it even if this replica is not the leader any more by then.
        self._answer(term, request, Reply(ok=True, line=f"{term.holder} steps down", data={"epoch": term.epoch}))
        self._elector.step_down(TermEnd.STEP_DOWN, detail=request.by, preferred=preferred)

    def _pause_cluster(self, term: Term, request: Request) -> None:
        if self._pause is not None:
            raise _refuse(f"the cluster is paused already, {self._pause.in_words()}", pause=self._pause.as_data())
        pause = Pause(self._ms(), request.by, str(request.args.get("reason") or ""))
        reply = Reply(ok=True, line="the cluster is paused: nothing is enqueued by schedule", data=pause.as_data())
        record = {"event": "paused", "why": pause.reason}
        # Whatever becomes of the reply, Redis knows: it is asked again before the next batch.
        self._known_to = ""
        self._answer(term, request, reply, record=record, change=MetaChange(Pause.FIELD, pause.encoded()))
        self._known_to, self._pause, self._enqueuer.paused = term.nonce, pause, True
        self._remember(term, pause)
        self._emit(events.Paused(pause.since, pause.by, pause.reason, found=False))

    def _resume_cluster(self, term: Term, request: Request) -> None:
        pause = self._pause
        if pause is None:
            raise _refuse("the cluster is not paused")
        reply = Reply(ok=True, line="the cluster is resumed", data={"was": pause.as_data()})
        self._known_to = ""
        self._answer(term, request, reply, record={"event": "resumed"}, change=MetaChange(Pause.FIELD, ""))
        self._known_to, self._pause, self._enqueuer.paused = term.nonce, None, False
        self._remember(term, None)
        # What fell due meanwhile gets its verdict by the misfire policy.
        self._enqueuer.reload()
        self._emit(events.Resumed(request.by, self._ms() / 1000 - pause.since_ms / 1000))

    # --- Manual runs and backfill

    def _slot(self, request: Request) -> Slot:
        name = str(request.args.get("entry") or "")
        slot = self._enqueuer.agenda.get(name)
        if slot is not None:
            return slot
        by_name = [slot for slot in self._enqueuer.agenda.slots() if str(slot.entry.name) == name]
        if len(by_name) == 1:
            return by_name[0]
        known = sorted({str(slot.entry.name) for slot in self._enqueuer.agenda.slots()})
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {len(known)} entries"
        raise _refuse(f"the leader schedules no entry {name!r}{hint}", nearest=near)

    def _dispatcher(self) -> Dispatcher:
        dispatcher = self._enqueuer.dispatcher
        if dispatcher is None:
            raise StoreUnavailable("no way to enqueue has been chosen yet", acted=False)
        return dispatcher

    def _operation(
        self, term: Term, request: Request, slot: Slot, at: datetime, *, kind: MessageKind, task_id: str, step: int
    ) -> Operation:
        """One message of a request: it has its header, its record, and no part in the entry's position."""
        instant = Occurrence(slot.id, at).instant
        header = header_of(
            self._cluster,
            slot.id,
            instant,
            epoch=term.epoch,
            run_count=slot.row.run_count if slot.row else 0,
            kind=kind,
            request=request.id,
        )
        args, kwargs, options = self._source.arguments(slot)
        message = self._dispatcher().prepare(slot.entry, args, kwargs, with_header(options, header, task_id))
        content = {"kind": kind, "verdict": "enqueued", "entry": slot.id, "at": instant, "id": task_id}
        record = self._record(term, request, content)
        return Operation(slot.id, "", "", (record,), message, request=request.id, step=step, task_id=task_id)

    def _done_before(self, request: Request) -> int:
        """The last step that an earlier leader has begun: it must not be begun again."""
        if request.id not in self._begun:
            self._begun[request.id] = self._requests.progress(request.id)
        return self._begun[request.id]

    def _run(self, term: Term, request: Request) -> None:
        slot = self._slot(request)
        if self._done_before(request):
            data = {"entry": slot.id, "task": str(slot.entry.task), "task_id": request.task_id()}
            line = f"{slot.id} was sent by an earlier leader as {request.task_id()}; the history says what became of it"
            self._answer(term, request, Reply(ok=True, line=line, data=data))
            return
        at, task_id = self._enqueuer.now(), request.task_id()
        operation = self._operation(term, request, slot, at, kind=MessageKind.MANUAL, task_id=task_id, step=1)
        (answer,) = self._dispatcher().submit(term, [operation])
        if answer.kind not in ("done", "mine", "partial"):
            raise _refuse(_failure(answer), task_id=task_id)
        task = str(slot.entry.task)
        self._emit(events.EnqueuedOnRequest(slot.id, task, task_id, at, "manual", request.by))
        data = {"entry": slot.id, "task": task, "task_id": task_id}
        self._answer(term, request, Reply(ok=True, line=f"enqueued {slot.id} as {task}[{task_id}]", data=data))

    def _backfill(self, term: Term, request: Request) -> None:
        slot = self._slot(request)
        dry, force = bool(request.args.get("dry_run")), bool(request.args.get("force"))
        instants = self._judged(request, slot, force=force)
        if not dry:
            instants = self._enqueue(term, request, slot, instants)
        count = sum(found.state in ("would enqueue", "enqueued") for found in instants)
        left = len(instants) - count
        verb = "would enqueue" if dry else "enqueued"
        line = f"{verb} {count} of {len(instants)} instants of {slot.id}" + (f", {left} refused" if left else "")
        listed = [
            {
                "at": Occurrence(slot.id, found.at).instant,
                "state": found.state,
                "why": found.why,
                "task_id": Occurrence(slot.id, found.at).task_id(self._cluster),
            }
            for found in instants
        ]
        record = None if dry else {"event": "backfill", "entry": slot.id, "why": f"{count} of {len(instants)}"}
        reply = Reply(ok=left == 0, line=line, data={"entry": slot.id, "dry_run": dry, "instants": listed})
        self._answer(term, request, reply, record=record)

    def _judged(self, request: Request, slot: Slot, *, force: bool) -> list[Instant]:
        """Every due instant asked for, and whether it may be enqueued."""
        if slot.instants is None:
            raise _refuse(f"{slot.id} has a schedule of its own kind, whose past instants can't be told")
        since, until = _instant_of(request, "from"), _instant_of(request, "to")
        found = list(islice(due_between(slot.instants, slot.base, since, until), BACKFILL_LIMIT + 1))
        if len(found) > BACKFILL_LIMIT:
            raise _refuse(f"these are more than {BACKFILL_LIMIT} instants: ask for a shorter time")
        if not found:
            return []
        known = [
            record
            for record in self._journal.between(found[0] - _CLOCK_ROOM)
            if isinstance(record, VerdictRecord) and record.entry == slot.id and record.kind != "manual"
        ]
        return judged(found, slot.base, known, request.id, force=force)

    def _enqueue(self, term: Term, request: Request, slot: Slot, instants: Sequence[Instant]) -> list[Instant]:
        settled = {found.number: found for found in instants}
        before = self._done_before(request)
        for found in instants:
            if found.number <= before and found.state == "would enqueue":
                settled[found.number] = Instant(found.number, found.at, "uncertain", "begun by an earlier leader")
        wanted = [found for found in settled.values() if found.state == "would enqueue"]
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            operations = []
            for found in batch:
                task_id = Occurrence(slot.id, found.at).task_id(self._cluster)
                operations.append(
                    self._operation(
                        term, request, slot, found.at, kind=MessageKind.BACKFILL, task_id=task_id, step=found.number
                    )
                )
            for found, answer in zip(batch, self._dispatcher().submit(term, operations), strict=True):
                done = answer.kind in ("done", "mine", "partial")
                why = "" if done else _failure(answer)
                settled[found.number] = Instant(found.number, found.at, "enqueued" if done else "failed", why)
                if done:
                    task_id = Occurrence(slot.id, found.at).task_id(self._cluster)
                    task = str(slot.entry.task)
                    self._emit(events.EnqueuedOnRequest(slot.id, task, task_id, found.at, "backfill", request.by))
            self._elector.progress()
        return list(settled.values())

    # --- What the leader knows

    def _upcoming(self, request: Request) -> Iterator[dict[str, Any]]:
        limit = min(int(request.args.get("limit") or 20), _LISTED)
        wanted = str(request.args.get("entry") or "")
        slots = [self._slot(request)] if wanted else list(self._enqueuer.agenda.slots())
        far = datetime.max.replace(tzinfo=UTC)
        for slot in sorted(slots, key=lambda slot: (slot.due_at or far, slot.id))[:limit]:
            known = slot.instants is not None and slot.due_at is not None
            yield {
                "entry": slot.id,
                "name": str(slot.entry.name),
                "task": str(slot.entry.task),
                "schedule": " ".join(str(slot.entry.schedule).split()),  # django-celery-beat's has line breaks
                "due": slot.due_at.isoformat() if known and slot.due_at else None,
                "last": slot.row.scheduled_at.isoformat() if slot.row and slot.row.scheduled_at else None,
                "run_count": slot.row.run_count if slot.row else 0,
            }

    def _report_of_leader(self) -> dict[str, Any]:
        now, agenda = self._enqueuer.now(), self._enqueuer.agenda
        overdue = [
            (now - slot.due_at).total_seconds()
            for slot in agenda.slots()
            if slot.instants is not None and slot.due_at is not None and slot.due_at < now
        ]
        return {
            "dispatch": self._path,
            "failing": dict(self._failing),
            "now_ms": self._ms(),
            "entries": len(agenda),
            "backlog": len(overdue),
            "longest_overdue": max(overdue, default=0.0),
            "paused": self._pause.as_data() if self._pause else None,
        }


def _failure(answer: Answer) -> str:
    match answer.kind:
        case "withdrawn":
            return "it was not enqueued: the request was taken back"
        case "uncertain" | "again":
            return "nobody knows whether the broker took it"
        case _:
            return f"it was not enqueued: {answer.detail or answer.kind}"


def _instant_of(request: Request, name: str) -> datetime:
    micros = request.args.get(name)
    if not isinstance(micros, int):
        raise _refuse(f"the request does not say {name} when")
    return from_micros(micros)
