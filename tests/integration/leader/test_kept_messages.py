"""Messages that were built and not sent: a task that takes a lock when its message is built can build no second one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from ha_beat.dispatch import Answer, Operation
from ha_beat.dispatch.messages.build import Declined
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.reasons import SkipReason
from ha_beat.schedule.occurrence import Occurrence
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from tests.integration.leader.stepped_leader import Leader, ScriptDispatcher, Source, enqueued
from tests.support.dispatchers import PlainPush, TimedPush, push

FULL, AWAY = StoreRefused("full"), StoreUnavailable("away")


class LockingTask(ScriptDispatcher):
    """Dispatcher for a task that takes a lock when its message is built, and declines while the lock is held."""

    lose_replies = False
    locked, timed = True, False
    built = 0

    def prepare(self, _: Any, args: Sequence[Any], *__: Any) -> Any:
        self.built += 1
        if self.built > 1 and self.locked:
            raise Declined("e")
        return TimedPush((("LPUSH", "queue", f"{args[0]} {self.built}"),)) if self.timed else push(str(args[0]))

    def submit(self, term: Term, operations: Sequence[Operation], _: object = None) -> list[Answer]:
        answers = super().submit(term, operations)
        if self.lose_replies and any(operation.message for operation in operations):
            raise StoreUnavailable("the reply was lost")
        return answers


class LockingLeader(Leader):
    """A leader with one due entry whose task takes a lock."""

    def begin(self, source: Source) -> None:
        self.use(source, publish_deadline=30.0, handover_after=1000.0)
        self.owe("e")

    def fail_past_the_deadline(self) -> None:
        """Build the message, and keep Redis full until the occurrence is too late to be published."""
        with self.failing(FULL, "e"):
            self.turn(5, after=1.0)
            self.turn(5, after=60.0)

    def last_record(self) -> dict[str, Any]:
        return self.records()[-1]


@pytest.fixture
def leader(shared_redis) -> LockingLeader:
    leader = LockingLeader(shared_redis)
    leader.dispatcher = LockingTask(leader.client)
    leader.begin(Source())
    return leader


@pytest.mark.parametrize("new_term", [False, True])
def test_message_is_built_once_although_its_send_fails(leader: LockingLeader, new_term: bool):
    """Built again, a task with a lock would find its own lock, and never publish again."""
    with leader.failing(AWAY, "e"):
        leader.turn(5, after=1.0)
    if new_term:
        leader.lead()
    assert leader.turn(5, after=2.0).messages == ["e"]
    assert leader.last_record()["verdict"] == "enqueued"


def test_message_past_its_deadline_replaces_one_that_is_declined(leader: LockingLeader):
    """The late message holds the lock. Otherwise the task would decline for as long as the lock exists."""
    leader.fail_past_the_deadline()
    assert leader.turn(5, after=2.0).messages == []
    assert leader.turn(5, after=3600.0).messages == ["e"]
    assert [record["verdict"] for record in leader.records()] == ["skipped", "enqueued"]


@pytest.mark.parametrize("locked", [False, True])
def test_message_with_an_expiry_is_built_again_if_it_can_be(leader: LockingLeader, locked: bool):
    """The expiry counts from when the message was built. Sent after an outage, the message would not run."""
    leader.dispatcher.locked, leader.dispatcher.timed = locked, True
    with leader.failing(FULL, "e"):
        leader.turn(5, after=1.0)
    (message,) = leader.turn(5, after=2.0).messages
    assert (message == "e 1") == locked


@pytest.mark.parametrize("own", [False, True])
def test_message_that_replaces_another_names_its_own_occurrence(leader: LockingLeader, monkeypatch, own: bool):
    """An entry with its own task id has the occurrence's id in the header, by which a worker drops a second message."""
    headers: list[Any] = []
    monkeypatch.setattr(PlainPush, "restamped", lambda message, header: headers.append(header) or message)
    monkeypatch.setattr(Source, "arguments", lambda *_: (["e"], {}, {"task_id": "own"} if own else {}))
    leader.begin(Source())
    leader.fail_past_the_deadline()
    assert leader.turn(10, after=3600.0).messages == ["e"]
    due = datetime.fromisoformat(leader.last_record()["at"])
    assert headers[-1].get("task_id") == (Occurrence("e", due).task_id("enqueuer") if own else None)


@pytest.mark.parametrize("change", ["expiry", "arguments"])
def test_message_with_an_expiry_or_other_arguments_replaces_none(leader: LockingLeader, monkeypatch, change: str):
    """A message that cannot be built is not replaced by one with the arguments of an earlier time."""
    arguments = ["e"]
    monkeypatch.setattr(Source, "arguments", lambda *_: (list(arguments), {}, {}))
    leader.dispatcher.timed = change == "expiry"
    leader.begin(Source())
    leader.fail_past_the_deadline()
    leader.turn(5, after=2.0)
    if change == "arguments":
        arguments[0] = "other"
    assert leader.turn(10, after=3600.0).messages == []
    assert leader.last_record()["why"] == SkipReason.DECLINED


@pytest.mark.parametrize("disabled", [False, True])
def test_message_that_may_have_been_enqueued_is_not_sent_again(leader: LockingLeader, disabled: bool):
    """The reply was lost and the term ended. The next occurrence is declined, because the first one waits to run."""
    due = leader.turn().state().due_at
    leader.dispatcher.lose_replies = True
    leader.turn(3, after=1.0)
    leader.dispatcher.lose_replies = False
    if disabled:
        # And enabled again, after which the runs are counted from 0.
        leader.write(LedgerRow(due, "armed", signature="s"))
    leader.lead()
    for _ in range(2):
        assert leader.turn(5, after=3600.0).messages == ["e"]
    assert leader.last_record()["why"] == SkipReason.DECLINED


def test_message_that_another_leader_has_enqueued_replaces_none(leader: LockingLeader):
    """The next occurrence is declined, because the first one waits to run. The old message has the same task id."""
    with leader.failing(FULL, "e"):
        leader.turn(3, after=1.0)
    leader.write(enqueued(leader.state().due_at, run_count=1))
    leader.lead()
    assert leader.turn(5, after=3600.0).messages == []
    assert leader.last_record()["why"] == SkipReason.DECLINED


def test_message_of_an_edited_entry_is_built_again(leader: LockingLeader):
    with leader.failing(AWAY, "e"):
        leader.turn(3, after=1.0)
    edited = next(iter(leader.source.load()))
    edited.celery_entry.args = ("edited",)
    leader.source.load = lambda: [edited]
    leader.lead().turn(5, after=2.0)
    assert leader.dispatcher.built > 1
