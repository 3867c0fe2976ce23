"""Claim, publish, confirm: the contents of ledger, journal and broker after each fault.

The publisher is a fake; the store and its scripts are a real Redis.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import exceptions as redis_errors

from ha_beat import events
from ha_beat.budget import Pace
from ha_beat.clock import SystemClock, to_micros
from ha_beat.dispatch import Answer, FencedOff, Operation
from ha_beat.dispatch.broker_adapters import Sent
from ha_beat.dispatch.send_rate import CHUNK
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.reasons import AnswerKind, PublishOutcome, SkipReason, TermEnd, UncertainPolicy, UncertainReason
from ha_beat.store.keys import Keys
from ha_beat.store.lease import RedisLeaseStore, Term
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.scripts import text
from tests.support.brokers import FakePublisher, FixedLink
from tests.support.dispatchers import no_marker, push
from tests.support.events import EventLog
from tests.support.leases import acquire, attempt
from tests.support.servers import RedisServer

KEYS = Keys("claims")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SKIP, REPUBLISH = UncertainPolicy.SKIP, UncertainPolicy.REPUBLISH
ACCEPTED = Sent(PublishOutcome.ACCEPTED)
UNANSWERED = Sent(PublishOutcome.UNKNOWN, "cut", broken=True)
NACK = Sent(PublishOutcome.UNKNOWN, "nacked")
NO_EXCHANGE = Sent(PublishOutcome.REFUSED, "no such exchange")
DONE = Answer(AnswerKind.DONE)
OPEN = {"id of entry": "open"}
PACE = Pace(SystemClock())
ARMED = Operation("other", "", LedgerRow(base=NOON, verdict="armed").encoded())


class Killed(BaseException):
    """End of a process in the middle of a send."""


class Unreliable:
    """Client whose script calls fail as prepared: the call or its reply is lost."""

    def __init__(self, client: Any, keys: Keys = KEYS) -> None:
        self._client = client
        self._keys = keys
        #: Faults in order, each for the next call of its script: (script, "lost reply" or "cut").
        self.faults: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def evalsha(self, sha: str, numkeys: int, *args: Any) -> Any:
        script = "resolve" if len(args) > 3 and str(args[3]) == self._keys.claims else "claim"
        if not self.faults or self.faults[0][0] != script:
            return self._client.evalsha(sha, numkeys, *args)
        if self.faults[0][1] == "lost reply":
            self._client.evalsha(sha, numkeys, *args)  # may raise NoScriptError first
        raise redis_errors.ConnectionError(self.faults.pop(0)[1])


class Leader:
    """Leader with a claim dispatcher, and the state that it leaves."""

    def __init__(self, server: RedisServer, name: str = "one") -> None:
        self.server = server
        self.admin: Any = server.client()
        self.client = Unreliable(server.client(decode_responses=False))
        self.store = RedisLeaseStore(lambda: self.admin, KEYS)
        self.publisher = FakePublisher()
        self.trusted, self.events = True, EventLog()
        link = FixedLink(self.client)
        self.dispatcher = ClaimDispatcher(
            self.publisher, link, KEYS, 1000, 0.05, lambda _: self.trusted, no_marker(), PACE, self.events.append
        )
        self.term = self.lead(name)

    def lead(self, name: str) -> Term:
        return acquire(self.store, attempt(name)).term

    def successor(self) -> Leader:
        return Leader(self.server, "two")

    def operation(
        self, entry: str = "entry", policy: UncertainPolicy = SKIP, expected: str = "", rev: int = 1
    ) -> Operation:
        at = NOON + timedelta(minutes=rev)
        row = LedgerRow(base=at, verdict="enqueued", scheduled_at=at, rev=rev, run_count=rev, task_id=f"id of {entry}")
        row = replace(row, epoch=self.term.epoch, nonce=self.term.nonce).encoded()
        record = json.dumps(
            {"verdict": "enqueued", "entry": entry, "at": at.isoformat(), "base": to_micros(at), "ms": 1}
        )
        message = push(f"message of {entry}")
        return Operation(entry, expected, row, (record,), message, task_id=f"id of {entry}", uncertain=policy)

    def batch(self, count: int) -> list[Operation]:
        return [self.operation(f"entry {number:02}") for number in range(count)]

    def request_step(self) -> Operation:
        self.admin.hset(KEYS.requests, "request", "x")
        return replace(self.operation(), row="", request="request", step=1)

    def submit(self, *operations: Operation) -> list[Answer]:
        return self.dispatcher.submit(self.term, operations)

    def submit_kinds(self, *operations: Operation) -> list[str]:
        return [answer.kind for answer in self.submit(*operations)]

    def record_open_claims_as_uncertain(self) -> Any:
        return self.dispatcher.record_uncertain(self.term, self.dispatcher.open_claims(self.term))

    def raw(self, entry: str = "entry") -> str:
        return self.admin.hget(KEYS.ledger, f"e:{entry}") or ""

    def row(self, entry: str = "entry") -> dict[str, Any]:
        return json.loads(self.raw(entry) or "{}")

    def verdict(self, entry: str = "entry") -> str | None:
        """Return the verdict in the ledger."""
        return self.row(entry).get("verdict")

    def claims(self) -> dict[str, str]:
        """Return the state of each claim by its key."""
        return {key: value.split(" ")[0] for key, value in self.admin.hgetall(KEYS.claims).items()}

    def journal(self) -> list[str]:
        """Return the verdicts in the journal, in order."""
        records = [json.loads(fields["d"]) for _, fields in self.admin.xrange(KEYS.journal)]
        return [record["verdict"] for record in records if "verdict" in record]


@pytest.fixture
def leader(shared_redis: RedisServer) -> Leader:
    return Leader(shared_redis)


def leave_claimed(leader: Leader, operation: Operation | None = None) -> None:
    """Leave a claim open, as a process that is killed after its claim does."""

    def die(_: int) -> None:
        raise Killed

    leader.publisher.before_send = die
    with pytest.raises(Killed):
        leader.submit(operation or leader.operation())
    assert "open" in leader.claims().values()


# --- Each outcome under each policy


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_accepted_message_is_enqueued_and_leaves_no_claim(leader: Leader, policy: UncertainPolicy):
    operation = leader.operation(policy=policy)
    assert leader.submit(operation) == [DONE]
    assert (leader.raw(), leader.claims(), leader.journal()) == (operation.row, {}, ["enqueued"])
    assert leader.publisher.accepted == ["message of entry"]


def test_claim_is_written_before_the_message_is_sent(leader: Leader):
    found: list[Any] = []
    leader.publisher.before_send = lambda _: found.extend([leader.claims(), leader.verdict(), leader.journal()])
    leader.submit(leader.operation())
    assert found == [OPEN, "claimed", []]


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_refused_message_leaves_ledger_and_journal_unchanged(leader: Leader, policy: UncertainPolicy):
    """It may be sent again."""
    leader.submit(leader.operation())
    before = leader.raw()
    leader.publisher.outcomes = [NO_EXCHANGE]
    operation = leader.operation(policy=policy, expected=before, rev=2)
    assert leader.submit(operation) == [Answer(AnswerKind.ERROR, "no such exchange")]
    assert (leader.raw(), leader.claims(), leader.journal()) == (before, {}, ["enqueued"])
    assert leader.submit(operation) == [DONE]
    assert len(leader.publisher.accepted) == 2


def test_entry_whose_first_message_is_refused_has_no_row(leader: Leader):
    leader.publisher.outcomes = [NO_EXCHANGE]
    leader.submit(leader.operation())
    assert leader.raw() == ""


@pytest.mark.parametrize("sent", [UNANSWERED, NACK], ids=["cut", "nack"])
def test_unknown_outcome_is_recorded_as_uncertain_under_skip(leader: Leader, sent: Sent):
    """The answer has the row that is in the ledger, and the next occurrence replaces it."""
    leader.publisher.outcomes = [sent]
    assert leader.submit(leader.operation()) == [Answer(AnswerKind.UNCERTAIN, leader.raw())]
    row = leader.row()
    assert (row["verdict"], row["why"], row["detail"]) == ("uncertain", UncertainReason.NO_ANSWER, sent.detail)
    assert (leader.claims(), leader.journal()) == ({}, ["uncertain"])
    assert leader.submit(leader.operation(expected=leader.raw(), rev=2)) == [DONE]


def test_unknown_outcome_stays_claimed_under_republish(leader: Leader):
    """The message is sent until one publish is answered. The journal has one verdict in the end."""
    leader.publisher.outcomes = [UNANSWERED]
    assert leader.submit(leader.operation(policy=REPUBLISH)) == [Answer(AnswerKind.AGAIN, leader.raw())]
    assert (leader.verdict(), leader.claims()) == ("claimed", OPEN)
    again = leader.operation(policy=REPUBLISH, expected=leader.raw())
    assert leader.submit(again) == [DONE]
    assert (leader.raw(), leader.claims(), leader.journal()) == (again.row, {}, ["enqueued"])


@pytest.mark.parametrize("second", [NO_EXCHANGE, StoreUnavailable("away", acted=False)], ids=["refused", "unsent"])
def test_claim_of_a_maybe_accepted_message_is_not_taken_back(leader: Leader, second: Any):
    """A second publish that certainly failed does not tell whether the first was accepted."""
    leader.publisher.outcomes = [UNANSWERED, second]
    for _ in range(2):
        answers = leader.submit(leader.operation(policy=REPUBLISH, expected=leader.raw()))
    assert answers == [Answer(AnswerKind.AGAIN, leader.raw())]
    assert (leader.verdict(), leader.claims()) == ("claimed", OPEN)


def test_message_that_one_of_several_queues_refused_is_partial(leader: Leader):
    """Sending it again would give the other queues a second message."""
    leader.publisher.outcomes = [replace(ACCEPTED, detail="not every queue took it: one")]
    operation = leader.operation()
    assert leader.submit(operation) == [Answer(AnswerKind.PARTIAL, "not every queue took it: one")]
    assert (leader.raw(), leader.claims()) == (operation.row, {})


# --- Unreachable broker


def test_unreachable_broker_prevents_claims(leader: Leader):
    """An operation without a message is written all the same."""
    leader.publisher.away = "refused"
    assert leader.submit(leader.operation(), ARMED) == [Answer(AnswerKind.UNSENT, "refused"), DONE]
    assert (leader.raw(), leader.verdict("other")) == ("", "armed")


def test_broken_connection_ends_the_publishing_of_a_batch(leader: Leader):
    """Each further message would wait for a timeout. Their claims are taken back."""
    leader.publisher.outcomes = [ACCEPTED, UNANSWERED]
    assert leader.submit_kinds(*leader.batch(30)) == ["done", "uncertain", *["unsent"] * 28]
    assert leader.publisher.accepted == ["message of entry 00"]
    assert (leader.claims(), leader.journal()) == ({}, ["enqueued", "uncertain"])
    assert leader.raw("entry 02") == leader.raw("entry 29") == ""


def test_refusal_of_one_message_does_not_stop_the_others(leader: Leader):
    """Nor does a nack."""
    leader.publisher.outcomes = [NO_EXCHANGE, NACK]
    assert leader.submit_kinds(*leader.batch(4)) == ["error", "uncertain", "done", "done"]


def test_end_of_trust_in_mid_batch_ends_the_publishing(leader: Leader):
    """The claims that were not sent are taken back while the lease still names this leader."""
    leader.publisher.before_send = lambda number: setattr(leader, "trusted", number < 3)
    assert leader.submit_kinds(*leader.batch(6)) == ["done"] * 3 + ["unsent"] * 3
    assert len(leader.publisher.accepted) == 3
    assert leader.claims() == {}


# --- Answers that come after several messages


@pytest.mark.parametrize(("confirmed", "outcome"), [(3, UNANSWERED), (17, NACK)])
def test_broker_that_answers_some_of_a_chunk(leader: Leader, confirmed: int, outcome: Sent):
    """What was confirmed is enqueued, and what was not sent after a broken connection is taken back."""
    leader.publisher.answers_late = True
    leader.publisher.outcomes = [ACCEPTED] * (1 + confirmed) + [outcome] * (CHUNK - confirmed)
    kinds = leader.submit_kinds(*leader.batch(CHUNK + 3))
    rest = "unsent" if outcome.broken else "done"
    assert kinds == [*["done"] * (1 + confirmed), *["uncertain"] * (CHUNK - confirmed), *[rest] * 2]
    assert Counter(leader.journal()) == {"enqueued": kinds.count("done"), "uncertain": kinds.count("uncertain")}
    assert leader.claims() == {}


def test_end_of_trust_in_mid_chunk_confirms_what_was_sent(leader: Leader):
    leader.publisher.answers_late = True
    leader.publisher.before_send = lambda number: setattr(leader, "trusted", number < 3)
    assert leader.submit_kinds(*leader.batch(6)) == ["done"] * 3 + ["unsent"] * 3
    assert (leader.claims(), leader.journal()) == ({}, ["enqueued"] * 3)


def test_end_of_trust_in_the_wait_before_a_message_sends_nothing(leader: Leader):
    """The wait for the others' answers has no limit, and the next leader may send the message again meanwhile."""
    leader.submit(*leader.batch(1))
    leader.publisher.on_make_way = lambda: setattr(leader, "trusted", False)
    assert leader.submit_kinds(leader.operation("late")) == ["unsent"]
    assert leader.publisher.sends == 1


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_death_before_the_answers_leaves_the_chunk_open(leader: Leader, policy: UncertainPolicy):
    """And nothing else. The next leader finds the claims."""
    leader.publisher.answers_late = True
    leader.publisher.before_settle = lambda: leader.publisher.sends > 1 and die()
    with pytest.raises(Killed):
        leader.submit(*[replace(each, uncertain=policy) for each in leader.batch(CHUNK + 3)])
    assert list(leader.claims().values()) == ["open"] * CHUNK
    assert leader.journal() == ["enqueued"]
    new = leader.successor()
    assert len(new.record_open_claims_as_uncertain()) == CHUNK
    assert new.submit_kinds(*new.batch(CHUNK + 3)[-2:]) == ["done"] * 2


def die() -> None:
    raise Killed


def test_error_in_mid_chunk_leaves_the_answers_to_the_others(leader: Leader):
    leader.publisher.answers_late = True
    leader.publisher.outcomes = [ACCEPTED] * 3 + [ValueError("a bug")]
    operations = leader.batch(5)
    with pytest.raises(ValueError, match="a bug"):
        leader.submit(*operations)
    assert leader.submit_kinds(*operations) == ["done"] * 3 + ["uncertain", "done"]
    assert len(leader.publisher.accepted) == 4


@pytest.mark.parametrize("place", ["send", "wait"])
def test_stop_in_mid_chunk_records_what_the_broker_has_accepted(leader: Leader, place: str):
    """The signal's handler takes back what was not sent. The answers come after it."""
    leader.publisher.answers_late = True

    def stop() -> None:
        if leader.publisher.sends == 4:
            leader.publisher.before_settle = leader.publisher.before_send = lambda *_: None
            leader.dispatcher.resolve_own(leader.term, leader.admin)
            leader.store.release(leader.term, TermEnd.SHUTDOWN)
            raise SystemExit

    if place == "send":
        leader.publisher.before_send = lambda _: stop()
    else:
        leader.publisher.before_settle = stop
    with pytest.raises(SystemExit):
        leader.submit(*leader.batch(4 if place == "wait" else 10))
    accepted = 4 if place == "wait" else 3
    assert leader.journal() == ["enqueued"] * accepted
    assert list(leader.claims().values()) == ["open"] * (4 - accepted)
    new = leader.successor()
    assert new.submit(*new.batch(10)[4:]) == [DONE] * 6


def test_second_signal_in_the_wait_for_answers_ends_the_batch(leader: Leader):
    leader.publisher.answers_late = True

    def stop() -> None:
        if leader.publisher.sends > 1:
            raise SystemExit

    leader.publisher.before_settle = stop
    with pytest.raises(SystemExit):
        leader.submit(*leader.batch(4))
    leader.publisher.answer()
    leader.dispatcher.resolve_own(leader.term, leader.admin)
    assert (leader.journal(), list(leader.claims().values())) == (["enqueued"], ["open"] * 3)


# --- Lost replies


@pytest.mark.parametrize("of_request", [False, True], ids=["occurrence", "request"])
def test_lost_reply_to_a_claim_is_detected_by_the_retry(leader: Leader, of_request: bool):
    """There is one message and one verdict."""
    leader.client.faults = [("claim", "lost reply")]
    operation = leader.request_step() if of_request else leader.operation()
    with pytest.raises(StoreUnavailable):
        leader.submit(operation)
    assert leader.publisher.accepted == []
    assert leader.submit(operation) == [DONE]
    assert leader.publisher.accepted == ["message of entry"]
    assert leader.journal() == ["enqueued"]


def test_confirmation_whose_reply_was_lost_is_written_once(leader: Leader):
    leader.client.faults = [("resolve", "lost reply")]
    assert leader.submit(leader.operation()) == [DONE]
    assert leader.journal() == ["enqueued"]


@pytest.mark.parametrize("fault", ["lost reply", "cut"])
@pytest.mark.parametrize(
    ("outcome", "kind", "verdict"),
    [(ACCEPTED, "done", "enqueued"), (UNANSWERED, "uncertain", "uncertain"), (NO_EXCHANGE, "error", None)],
    ids=["accepted", "unknown", "refused"],
)
def test_retry_after_a_failed_confirmation_sends_nothing_again(
    leader: Leader, fault: str, outcome: Sent, kind: str, verdict: str | None
):
    leader.publisher.outcomes = [outcome]
    leader.client.faults = [("resolve", fault)] * 50
    operation = leader.operation()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            leader.submit(operation)
    leader.client.faults = []
    assert leader.submit_kinds(operation) == [kind]
    assert (leader.verdict(), leader.claims(), leader.journal()) == (verdict, {}, [verdict] if verdict else [])
    assert leader.publisher.sends == 1


def test_retry_of_a_large_batch_continues_where_it_stopped(leader: Leader):
    """The finished part is answered from memory."""
    operations = leader.batch(50)

    def cut_at_the_thirtieth(number: int) -> None:
        if number == 30:
            leader.client.faults = [("resolve", "cut")] * 50

    leader.publisher.before_send = cut_at_the_thirtieth
    with pytest.raises(StoreUnavailable):
        leader.submit(*operations)
    leader.client.faults = []
    assert leader.submit(*operations) == [DONE] * 50
    assert leader.publisher.sends == 50
    assert sorted(leader.publisher.accepted) == [f"message of entry {number:02}" for number in range(50)]
    assert (leader.claims(), leader.journal()) == ({}, ["enqueued"] * 50)


def test_publish_that_raised_an_unexpected_error_is_not_repeated(leader: Leader):
    """The message may have been sent."""
    operation = leader.operation()
    leader.publisher.outcomes = [ValueError("a bug")]
    with pytest.raises(ValueError, match="a bug"):
        leader.submit(operation)
    assert leader.submit_kinds(operation) == ["uncertain"]
    assert leader.publisher.accepted == []
    assert leader.verdict() == "uncertain"


# --- Terms


def test_batch_with_a_written_row_is_not_dropped_when_it_is_refused(leader: Leader, monkeypatch):
    leader.publisher.away = "away"
    batch = [ARMED, *leader.batch(2), replace(ARMED, entry="last")]
    store: Any = leader.dispatcher._store
    write, answers = store.write, [1]

    def refused_later(*args: Any) -> Any:
        if not answers:
            raise StoreRefused("Redis is out of memory")
        answers.pop()
        return write(*args)

    monkeypatch.setattr(store, "write", refused_later)
    with pytest.raises(StoreRefused):
        leader.submit(*batch)
    assert leader.verdict("other") == "armed"
    assert not leader.dispatcher.drop_refused(batch)


@contextmanager
def full(leader: Leader) -> Iterator[None]:
    """Have Redis refuse all writes."""
    leader.admin.config_set("maxmemory", 1)
    try:
        yield
    finally:
        leader.admin.config_set("maxmemory", 0)


def test_refused_batch_is_dropped_and_another_one_takes_its_place(leader: Leader):
    """Its entries are judged again, and may have another row or none by then."""
    batch = leader.batch(30)
    with full(leader), pytest.raises(StoreRefused):
        leader.submit(*batch)
    assert leader.dispatcher.drop_refused(batch)
    assert leader.publisher.accepted == []
    assert leader.submit_kinds(replace(batch[0], row=batch[1].row)) == ["done"]
    assert leader.raw("entry 00") == batch[1].row
    assert leader.claims() == {}


def test_batch_with_a_sent_message_is_not_dropped_when_it_is_refused(leader: Leader):
    batch = leader.batch(30)
    leader.publisher.before_send = lambda _: leader.admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreRefused):
            leader.submit(*batch)
    finally:
        leader.admin.config_set("maxmemory", 0)
        leader.publisher.before_send = lambda _: None
    assert not leader.dispatcher.drop_refused(batch)
    assert set(leader.submit_kinds(*batch)) == {"done"}
    assert len(leader.publisher.accepted) == 30


def test_claim_under_an_ended_term_is_refused(leader: Leader):
    """Nothing is sent."""
    leader.successor()
    with pytest.raises(FencedOff):
        leader.submit(leader.operation())
    assert (leader.publisher.accepted, leader.claims()) == ([], {})


def test_newer_term_records_an_open_claim_as_uncertain(leader: Leader):
    """With every record of the claim, and once."""
    leave_claimed(leader)
    new = leader.successor()
    claims = new.dispatcher.open_claims(new.term)
    assert [(claim.entry, claim.nonce, claim.policy) for claim in claims] == [("entry", "nonce of one", "skip")]
    assert new.dispatcher.record_uncertain(new.term, claims)["entry"].raw == new.raw()
    assert new.verdict() == "uncertain"
    assert (new.claims(), new.journal()) == ({"id of entry": "uncertain"}, ["uncertain"])
    assert new.dispatcher.open_claims(new.term) == []
    assert new.dispatcher.record_uncertain(new.term, claims) == {}
    assert new.journal() == ["uncertain"]


def test_ended_term_gives_up_no_claim(leader: Leader):
    leave_claimed(leader)
    claims = leader.dispatcher.open_claims(leader.term)
    leader.successor()
    with pytest.raises(FencedOff):
        leader.dispatcher.record_uncertain(leader.term, claims)
    assert leader.claims() == OPEN


def leave_unconfirmed(leader: Leader) -> Operation:
    """Have a message accepted whose confirmation fails until the faults are removed."""
    leader.client.faults = [("resolve", "cut")] * 50
    operation = leader.operation()
    with pytest.raises(StoreUnavailable):
        leader.submit(operation)
    return operation


@pytest.mark.parametrize("uncertain", [False, True], ids=["before it is uncertain", "after it was uncertain"])
@pytest.mark.parametrize("way", ["stand by", "lead again"])
def test_late_confirmation_turns_uncertain_into_enqueued(leader: Leader, uncertain: bool, way: str):
    """The broker accepted the message and Redis was unreachable. No other change of a verdict is allowed."""
    operation = leave_unconfirmed(leader)
    new = leader.successor()
    if uncertain:
        new.record_open_claims_as_uncertain()
    leader.client.faults = []
    if way == "stand by":
        leader.dispatcher.confirm_late()
    else:
        leader.term = leader.lead("three")
        leader.submit(ARMED)
    journal = ["uncertain", "enqueued"] if uncertain else ["enqueued"]
    assert (leader.raw(), leader.claims(), leader.journal()) == (operation.row, {}, journal)
    leader.dispatcher.confirm_late()
    assert leader.journal() == journal


def test_late_confirmation_does_not_replace_a_newer_row(leader: Leader):
    """The journal has the verdict, the ledger the newer occurrence."""
    leave_unconfirmed(leader)
    new = leader.successor()
    newer = replace(new.operation(expected=new.raw(), rev=2), task_id="id of the next")
    assert new.submit(newer) == [DONE]
    leader.client.faults = []
    leader.dispatcher.confirm_late()
    assert (leader.raw(), leader.journal()) == (newer.row, ["enqueued", "enqueued"])


def test_unsent_claim_of_an_ended_term_is_marked(leader: Leader):
    """A newer leader has read the claimed row, so only that one restores it."""
    leader.publisher.outcomes = [NO_EXCHANGE]
    leader.publisher.before_send = lambda _: leader.successor()
    with pytest.raises(FencedOff):
        leader.submit(leader.operation())
    assert (leader.verdict(), leader.claims()) == ("claimed", {"id of entry": "unsent"})
    new = leader.successor()
    with pytest.raises(FencedOff):
        leader.dispatcher.take_back(leader.term)
    assert new.record_open_claims_as_uncertain() == {}
    assert new.dispatcher.take_back(new.term)
    assert (new.raw(), new.claims(), new.journal()) == ("", {}, [])
    assert not new.dispatcher.take_back(new.term)


def test_unsent_claim_whose_row_was_replaced_has_a_verdict(leader: Leader):
    """The next leader dispatched the next occurrence before the claim was marked as unsent."""
    leader.publisher.outcomes = [NO_EXCHANGE]
    leader.publisher.before_send = lambda _: leader.successor()
    with pytest.raises(FencedOff):
        leader.submit(leader.operation())
    new = leader.successor()
    newer = replace(new.operation(expected=new.raw(), rev=2), task_id="id of the next")
    assert new.submit(newer) == [DONE]
    assert new.dispatcher.take_back(new.term)
    assert (new.raw(), new.claims(), new.journal()) == (newer.row, {}, ["enqueued", "skipped"])
    (skipped,) = new.events.of(events.OccurrenceSkipped)
    assert (skipped.entry, skipped.count, skipped.reason) == ("entry", 1, SkipReason.NOT_PUBLISHED)


def test_uncertain_claim_is_removed_after_a_day(leader: Leader):
    """A recent one is kept for a late confirmation."""
    leave_claimed(leader)
    new = leader.successor()
    new.record_open_claims_as_uncertain()
    new.admin.hset(KEYS.claims, "recent", f"uncertain {json.dumps({'ms': new.term.epoch - 1000})}")
    new.dispatcher.open_claims(new.term)
    assert new.claims() == {"recent": "uncertain"}


# --- Operations of requests


def test_request_step_is_sent_once_and_leaves_the_row_alone(leader: Leader):
    """Another leader that tries the same step finds that it was begun, and does not send it."""
    assert leader.submit(leader.request_step()) == [DONE]
    new = leader.successor()
    assert new.submit(new.request_step()) == [Answer(AnswerKind.MINE)]
    assert new.publisher.accepted == []
    assert (new.raw(), new.journal()) == ("", ["enqueued"])


def test_request_step_that_was_left_open_is_uncertain(leader: Leader):
    """It has no row. Its record goes to the journal."""
    leave_claimed(leader, leader.request_step())
    new = leader.successor()
    assert new.record_open_claims_as_uncertain() == {}
    assert (new.raw(), new.journal()) == ("", ["uncertain"])


# --- Stop of the process


def test_stop_in_mid_batch_leaves_only_the_current_message_open(leader: Leader):
    """Accepted messages are recorded, and unsent ones are left to the next leader."""

    def stop_at_the_fourth(number: int) -> None:
        if number == 4:
            leader.dispatcher.resolve_own(leader.term, leader.admin)
            leader.store.release(leader.term, TermEnd.SHUTDOWN)
            raise SystemExit

    leader.publisher.before_send = stop_at_the_fourth
    with pytest.raises(SystemExit):
        leader.submit(*leader.batch(10))
    verdicts = [leader.verdict(f"entry {number:02}") for number in range(10)]
    assert verdicts == [*["enqueued"] * 3, "claimed", *[None] * 6]
    assert (leader.claims(), leader.journal()) == ({"id of entry 03": "open"}, ["enqueued"] * 3)
    new = leader.successor()
    assert new.submit(*new.batch(10)[4:]) == [DONE] * 6


def test_stop_after_the_end_of_the_term_marks_what_was_not_sent(leader: Leader):
    leader.submit(leader.operation("first"))

    def stop(_: int) -> None:
        leader.successor()
        leader.dispatcher.resolve_own(leader.term, leader.admin)
        raise SystemExit

    leader.publisher.before_send = stop
    with pytest.raises(SystemExit):
        leader.submit(leader.operation("one"), leader.operation("two"))
    assert leader.claims() == {"id of one": "open", "id of two": "unsent"}


def test_stop_without_claims_makes_no_round_trip(leader: Leader):
    leader.submit(leader.operation())
    leader.dispatcher.resolve_own(leader.term, None)
    assert leader.verdict() == "enqueued"


def test_stop_without_redis_raises_nothing(leader: Leader):
    """It runs in a signal handler."""
    away = Unreliable(leader.server.client(decode_responses=False))
    away.faults = [("resolve", "cut")] * 2

    def stop(_: int) -> None:
        leader.dispatcher.resolve_own(leader.term, away)
        raise SystemExit

    leader.publisher.before_send = stop
    with pytest.raises(SystemExit):
        leader.submit(leader.operation("one"), leader.operation("two"))
    assert leader.claims() == {"id of one": "open"}


# --- Overlap


@pytest.mark.parametrize(("sent", "busy"), [(NO_EXCHANGE, False), (UNANSWERED, True), (ACCEPTED, True)])
def test_message_that_was_certainly_not_sent_keeps_no_entry_busy(shared_redis: RedisServer, sent: Sent, busy: bool):
    leader = Leader(shared_redis)
    leader.publisher.outcomes = [sent]
    leader.dispatcher.submit(leader.term, [replace(leader.operation(), busy_ms=60_000, overlaps=False)])
    assert leader.admin.hexists(KEYS.busy, "e:entry") is busy


def test_message_that_was_not_sent_leaves_the_mark_of_one_that_runs(shared_redis: RedisServer):
    leader = Leader(shared_redis)
    leader.admin.hset(KEYS.busy, "e:entry", f"{round(time.time() * 1000)} the running message")
    leader.publisher.outcomes = [NO_EXCHANGE]
    leader.dispatcher.submit(leader.term, [replace(leader.operation(), busy_ms=60_000)])
    assert text(leader.admin.hget(KEYS.busy, "e:entry")).endswith(" the running message")


def test_message_that_an_earlier_leader_did_not_send_keeps_no_entry_busy(shared_redis: RedisServer):
    leader = Leader(shared_redis)
    leader.trusted = False
    leader.client.faults = [("resolve", "cut")] * 50
    with pytest.raises(StoreUnavailable):
        leader.dispatcher.submit(leader.term, [replace(leader.operation(), busy_ms=60_000, overlaps=False)])
    assert leader.admin.hexists(KEYS.busy, "e:entry")
    leader.client.faults = []
    successor = leader.successor()
    leader.dispatcher.confirm_late()
    successor.dispatcher.take_back(successor.term)
    assert not leader.admin.hexists(KEYS.busy, "e:entry")
