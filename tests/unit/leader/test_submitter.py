"""Batches that follow one another: each is built while the previous one is under way, and sent after its answer."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ha_beat import events
from ha_beat.dispatch import Answer, FencedOff, Operation
from ha_beat.dispatch.protocol import DONE
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.leader.batches.results import Applied
from ha_beat.leader.batches.submitter import Submitter
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.kept_messages import KeptMessages
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.reasons import TermEnd
from ha_beat.schedule.misfire import Decision
from ha_beat.store.lease import Term
from tests.support.clocks import SteppedClock
from tests.support.dispatchers import push
from tests.support.entries import scheduled, state_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TERM = Term("host/1/x", 7, "nonce", "gen", "", 1e9)

#: Failures of a batch: whether it stays pending, is put back, is split, or ends with the term.
PENDING, BACK, SPLIT, OVER = "pending", "back", "split", "over"
FAILURES = [
    (StoreUnavailable("no reply"), PENDING),
    (StoreRefused("an error in the script", unexplained=True), PENDING),
    (StoreUnavailable("not connected", acted=False), BACK),
    (StoreRefused("full"), BACK),
    (TypeError("a message"), SPLIT),
    (FencedOff(TermEnd.SUPERSEDED), OVER),
]


class Batches:
    """Submitter with three batches of two due entries, its dispatcher, its results and its schedule in one object."""

    obstacle = None

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.queue, self.first, self.reloads = DueQueue(), deque[Any](), 0
        self.failure: tuple[str, Exception] | None = None
        self.overlaps = True
        parts: Any = SimpleNamespace(
            clock=SteppedClock(), time=SimpleNamespace(now=lambda: NOW), kept=KeptMessages(), emit=self._emit
        )
        self.submitter = Submitter(parts, cast("Any", self), cast("Any", self))
        for number in range(6):
            self.queue.put(state_of(scheduled(f"e{number}", last_run=NOW)), NOW)
        self.events: list[events.Event] = []
        self.build_error: Exception | None = None

    def build(self) -> Sequence[EntryOperation]:
        due = self.queue.pop_due(NOW, 2)
        if due:
            self.steps.append(f"build {due[0].id}")
        if len(self.steps) > 1 and self.build_error is not None:
            raise self.build_error
        writer, send = LedgerWriter(TERM, NOW), Decision(NOW, NOW)
        return [writer.enqueue(state, send, "c", lambda *_: push()) for state in due]

    def run(self) -> None:
        self.submitter.submit_due(TERM, cast("Any", self), self.build(), self.build)

    def submit(
        self, term: Term, operations: Sequence[Operation], meanwhile: Callable[[], None] | None = None
    ) -> list[Answer]:
        self.steps.append(f"send {operations[0].entry}")
        if self.overlaps and meanwhile is not None:
            meanwhile()
        if self.failure is not None and self.failure[0] == operations[0].entry:
            raise self.failure[1]
        self.steps.append(f"answer {operations[0].entry}")
        return [DONE] * len(operations)

    def drop_refused(self, _: object) -> bool:
        return True

    def apply(self, _: Term, operations: Sequence[EntryOperation], answers: object, queue: DueQueue) -> Applied:
        self.steps.append(f"apply {operations[0].state.id}")
        for each in operations:
            queue.put(each.state, NOW + timedelta(hours=1))
        return Applied(sent=True)

    def reload(self) -> None:
        self.reloads += 1

    def due(self) -> list[str]:
        return sorted(state.id for state in self.queue.pop_due(NOW, 10))

    def _emit(self, event: events.Event) -> None:
        self.events.append(event)


def test_next_batch_is_built_early_and_sent_after_the_answer():
    batches = Batches()
    batches.run()
    assert batches.steps == [
        *("build e0", "send e0", "build e2", "answer e0"),
        *("send e2", "apply e0", "build e4", "answer e2"),
        *("send e4", "apply e2", "answer e4", "apply e4"),
    ]
    assert (batches.submitter.pending, batches.submitter.sent, batches.due()) == (0, True, [])


@pytest.mark.parametrize(("error", "outcome"), FAILURES)
def test_failed_batch_keeps_the_next_one_from_being_sent(error: Exception, outcome: str):
    """The answers to the previous batch are applied once. The entries of the next batch stay due."""
    batches = Batches()
    batches.failure = "e2", error
    if outcome in {PENDING, OVER}:
        with pytest.raises(type(error)):
            batches.run()
    else:
        batches.run()
    assert batches.steps[-3:] == ["send e2", "apply e0", "build e4"]
    assert batches.submitter.pending == (2 if outcome == PENDING else 0)
    assert [each[0].state.id for each in batches.first] == (["e2", "e3"] if outcome == SPLIT else [])
    assert batches.reloads == (outcome == OVER)
    assert batches.due() == (["e2", "e3", "e4", "e5"] if outcome == BACK else ["e4", "e5"])


def test_batch_without_an_answer_is_sent_again_before_the_next():
    batches = Batches()
    batches.failure = "e0", StoreUnavailable("no reply")
    with pytest.raises(StoreUnavailable):
        batches.run()
    batches.failure, dispatcher = None, cast("Any", batches)
    batches.submitter.submit_again(TERM, dispatcher)
    batches.run()
    sent = [step for step in batches.steps if step.startswith("send")]
    assert sent == ["send e0", "send e0", "send e4", "send e2"]


def test_error_while_a_batch_is_under_way_does_not_lose_its_answers():
    batches = Batches()
    batches.build_error = KeyError("schedule")
    with pytest.raises(KeyError):
        batches.run()
    assert batches.steps[-2:] == ["answer e0", "apply e0"]
    assert batches.submitter.pending == 0


@pytest.mark.parametrize(("error", "outcome"), FAILURES)
def test_entries_of_a_batch_whose_build_fails_are_read_again(error: Exception, outcome: str):
    """If the batch under way fails, too, its error is raised."""
    batches = Batches()
    batches.build_error, batches.failure = KeyError("schedule"), ("e0", error)
    with suppress(type(error)):
        batches.run()
    assert batches.reloads == 1 + (outcome == OVER)
    assert batches.submitter.pending == (2 if outcome == PENDING else 0)


def test_dispatcher_that_never_calls_meanwhile_submits_one_batch():
    batches = Batches()
    batches.overlaps = False
    batches.run()
    assert batches.steps == ["build e0", "send e0", "answer e0", "apply e0"]
