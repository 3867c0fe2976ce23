"""Claim, publish, confirm: the contents of ledger, journal and broker after each fault.

The publisher is a fake; the store and its scripts are a real Redis.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import exceptions as redis_errors

from ha_beat.clock import to_micros
from ha_beat.dispatch import Answer, FencedOff, OpenClaim, Operation
from ha_beat.dispatch.broker_adapters import Sent
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import AnswerKind, PublishOutcome, TermEnd, UncertainPolicy, UncertainReason
from ha_beat.store.keys import Keys
from ha_beat.store.lease import RedisLeaseStore, Term
from ha_beat.store.ledger import LedgerRow
from tests.support.brokers import FakePublisher, FixedLink
from tests.support.dispatchers import no_marker, push
from tests.support.leases import acquire, attempt
from tests.support.servers import RedisServer

KEYS = Keys("claims")
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

Act = Callable[[], object]


class Unreliable:
    """Client whose script calls fail as prepared: the call or its reply is lost."""

    def __init__(self, client: Any) -> None:
        self._client = client
        #: Faults in order, each for the next call of its script: (script, "lost reply" or "cut").
        self.faults: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def evalsha(self, sha: str, numkeys: int, *args: Any) -> Any:
        fault = self.faults[0] if self.faults else None
        what = "resolve" if str(args[3]) == KEYS.claims else "claim"
        if fault is None or fault[0] != what:
            return self._client.evalsha(sha, numkeys, *args)
        if fault[1] == "lost reply":
            self._client.evalsha(sha, numkeys, *args)  # may raise NoScriptError first
        self.faults.pop(0)
        raise redis_errors.ConnectionError(fault[1])


class Leader:
    """A leader with a claim dispatcher, and the state that it leaves."""

    def __init__(self, server: RedisServer, name: str = "one") -> None:
        self.admin: Any = server.client()
        self.client = Unreliable(server.client(decode_responses=False))
        self.store = RedisLeaseStore(lambda: self.admin, KEYS)
        self.publisher = FakePublisher()
        self.trusted = True
        link = FixedLink(self.client)
        self.dispatcher = ClaimDispatcher(self.publisher, link, KEYS, 1000, 0.05, lambda _: self.trusted, no_marker())
        self.term = self.lead(name)

    def lead(self, name: str = "one") -> Term:
        return acquire(self.store, attempt(name)).term

    def submit(self, *operations: Operation) -> list[Answer]:
        return self.dispatcher.submit(self.term, operations)

    def row(self, entry: str = "entry") -> dict[str, Any]:
        return json.loads(self.admin.hget(KEYS.ledger, f"e:{entry}") or "{}")

    def raw(self, entry: str = "entry") -> str:
        return self.admin.hget(KEYS.ledger, f"e:{entry}") or ""

    def claims(self) -> dict[str, str]:
        """Return the state of each claim by its key."""
        return {key: value.split(" ")[0] for key, value in self.admin.hgetall(KEYS.claims).items()}

    def open_claims(self) -> list[OpenClaim]:
        return self.dispatcher.open_claims(self.term)

    def verdicts(self) -> list[str]:
        """Return the verdicts in the journal, in order."""
        records = [json.loads(fields["d"]) for _, fields in self.admin.xrange(KEYS.journal)]
        return [record["verdict"] for record in records if "verdict" in record]

    def operation(
        self, entry: str = "entry", policy: UncertainPolicy = UncertainPolicy.SKIP, expected: str = "", rev: int = 1
    ) -> Operation:
        at = NOON + timedelta(minutes=rev)
        row = LedgerRow(base=at, verdict="enqueued", scheduled_at=at, rev=rev, run_count=rev, task_id=f"id of {entry}")
        row = replace(row, epoch=self.term.epoch, nonce=self.term.nonce)
        record = {"verdict": "enqueued", "entry": entry, "at": at.isoformat(), "base": to_micros(at), "ms": 1}
        message = push(f"message of {entry}")
        return Operation(
            entry, expected, row.encoded(), (json.dumps(record),), message, task_id=row.task_id, uncertain=policy
        )


@pytest.fixture
def leader(shared_redis: RedisServer) -> Leader:
    return Leader(shared_redis)


def successor(server: RedisServer) -> Leader:
    return Leader(server, "two")


UNANSWERED = Sent(PublishOutcome.UNKNOWN, "cut", broken=True)
NACK = Sent(PublishOutcome.UNKNOWN, "nacked")
NO_EXCHANGE = Sent(PublishOutcome.REFUSED, "no such exchange")


# --- Each outcome under each policy


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_accepted_message_is_enqueued_and_leaves_no_claim(leader: Leader, policy: UncertainPolicy) -> None:
    """The ledger has the final row, and the journal one verdict."""
    operation = leader.operation(policy=policy)
    assert leader.submit(operation) == [Answer(AnswerKind.DONE)]
    assert leader.raw() == operation.row
    assert leader.claims() == {}
    assert leader.verdicts() == ["enqueued"]
    assert leader.publisher.accepted == ["message of entry"]


def test_claim_is_written_before_the_message_is_sent(leader: Leader) -> None:
    found: list[Any] = []
    leader.publisher.before_send = lambda: found.extend([leader.claims(), leader.row()["verdict"], leader.verdicts()])
    leader.submit(leader.operation())
    assert found == [{"id of entry": "open"}, "claimed", []]


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_refused_message_leaves_ledger_and_journal_unchanged(leader: Leader, policy: UncertainPolicy) -> None:
    """It may be sent again."""
    leader.submit(leader.operation())
    before = leader.raw()
    leader.publisher.outcomes = [NO_EXCHANGE]
    answer = leader.submit(leader.operation(policy=policy, expected=before, rev=2))
    assert answer == [Answer(AnswerKind.ERROR, "no such exchange")]
    assert leader.raw() == before
    assert leader.claims() == {}
    assert leader.verdicts() == ["enqueued"]
    assert leader.submit(leader.operation(policy=policy, expected=before, rev=2)) == [Answer(AnswerKind.DONE)]
    assert len(leader.publisher.accepted) == 2


def test_entry_whose_first_message_is_refused_has_no_row(leader: Leader) -> None:
    leader.publisher.outcomes = [NO_EXCHANGE]
    leader.submit(leader.operation())
    assert leader.raw() == ""


@pytest.mark.parametrize("sent", [UNANSWERED, NACK], ids=["cut", "nack"])
def test_unknown_outcome_is_recorded_as_uncertain_under_skip(leader: Leader, sent: Sent) -> None:
    """The answer has the row that is in the ledger, and the next occurrence replaces it."""
    leader.publisher.outcomes = [sent]
    (answer,) = leader.submit(leader.operation())
    assert answer == Answer(AnswerKind.UNCERTAIN, leader.raw())
    assert leader.row()["verdict"] == "uncertain"
    assert (leader.row()["why"], leader.row()["detail"]) == (UncertainReason.NO_ANSWER, sent.detail)
    assert leader.claims() == {}
    assert leader.verdicts() == ["uncertain"]
    assert leader.submit(leader.operation(expected=answer.detail, rev=2)) == [Answer(AnswerKind.DONE)]


def test_unknown_outcome_stays_claimed_under_republish(leader: Leader) -> None:
    """The message is sent until one publish is answered. The journal has one verdict in the end."""
    leader.publisher.outcomes = [UNANSWERED]
    (answer,) = leader.submit(leader.operation(policy=UncertainPolicy.REPUBLISH))
    assert answer == Answer(AnswerKind.AGAIN, leader.raw())
    assert leader.row()["verdict"] == "claimed"
    assert leader.claims() == {"id of entry": "open"}
    again = leader.operation(policy=UncertainPolicy.REPUBLISH, expected=answer.detail)
    assert leader.submit(again) == [Answer(AnswerKind.DONE)]
    assert leader.raw() == again.row
    assert leader.claims() == {}
    assert leader.verdicts() == ["enqueued"]


@pytest.mark.parametrize("second", [NO_EXCHANGE, StoreUnavailable("away", acted=False)], ids=["refused", "unsent"])
def test_claim_of_a_maybe_accepted_message_is_not_taken_back(leader: Leader, second: Any) -> None:
    """A second publish that certainly failed does not tell whether the first was accepted."""
    leader.publisher.outcomes = [UNANSWERED, second]
    (answer,) = leader.submit(leader.operation(policy=UncertainPolicy.REPUBLISH))
    (answer,) = leader.submit(leader.operation(policy=UncertainPolicy.REPUBLISH, expected=answer.detail))
    assert answer == Answer(AnswerKind.AGAIN, leader.raw())
    assert leader.claims() == {"id of entry": "open"}
    assert leader.row()["verdict"] == "claimed"


def test_message_that_one_of_several_queues_refused_is_partial(leader: Leader) -> None:
    """Sending it again would give the other queues a second message."""
    leader.publisher.outcomes = [Sent(PublishOutcome.ACCEPTED, "not every queue took it: one")]
    operation = leader.operation()
    assert leader.submit(operation) == [Answer(AnswerKind.PARTIAL, "not every queue took it: one")]
    assert leader.raw() == operation.row
    assert leader.claims() == {}


# --- Unreachable broker


def test_unreachable_broker_prevents_claims(leader: Leader) -> None:
    """An operation without a message is written all the same."""
    leader.publisher.away = "refused"
    armed = Operation("other", "", LedgerRow(base=NOON, verdict="armed").encoded())
    assert leader.submit(leader.operation(), armed) == [Answer(AnswerKind.UNSENT, "refused"), Answer(AnswerKind.DONE)]
    assert leader.raw() == ""
    assert leader.row("other")["verdict"] == "armed"


def test_broken_connection_ends_the_publishing_of_a_batch(leader: Leader) -> None:
    """Each further message would wait for a timeout. Their claims are taken back."""
    leader.publisher.outcomes = [Sent(PublishOutcome.ACCEPTED), UNANSWERED]
    answers = leader.submit(*(leader.operation(f"entry {number}") for number in range(30)))
    assert [answer.kind for answer in answers] == ["done", "uncertain", *["unsent"] * 28]
    assert leader.publisher.accepted == ["message of entry 0"]
    assert leader.claims() == {}
    assert leader.raw("entry 2") == ""
    assert leader.raw("entry 29") == ""
    assert leader.verdicts() == ["enqueued", "uncertain"]


def test_refusal_of_one_message_does_not_stop_the_others(leader: Leader) -> None:
    """Nor does a nack."""
    leader.publisher.outcomes = [NO_EXCHANGE, NACK]
    answers = leader.submit(*(leader.operation(f"entry {number}") for number in range(4)))
    assert [answer.kind for answer in answers] == ["error", "uncertain", "done", "done"]


def test_end_of_trust_in_mid_batch_ends_the_publishing(leader: Leader) -> None:
    """The claims that were not sent are taken back while the lease still names this leader."""
    count = 0

    def lose_trust_at_the_third() -> None:
        nonlocal count
        count += 1
        leader.trusted = count < 3

    leader.publisher.before_send = lose_trust_at_the_third
    answers = leader.submit(*(leader.operation(f"entry {number}") for number in range(6)))
    assert [answer.kind for answer in answers] == ["done"] * 3 + ["unsent"] * 3
    assert len(leader.publisher.accepted) == 3
    assert leader.claims() == {}


# --- Lost replies


def test_lost_reply_to_a_claim_is_detected_by_the_retry(leader: Leader) -> None:
    """There is one message and one verdict."""
    leader.client.faults = [("claim", "lost reply")]
    operation = leader.operation()
    with pytest.raises(StoreUnavailable):
        leader.submit(operation)
    assert leader.publisher.accepted == []
    assert leader.submit(operation) == [Answer(AnswerKind.DONE)]
    assert leader.publisher.accepted == ["message of entry"]
    assert leader.verdicts() == ["enqueued"]


def test_confirmation_whose_reply_was_lost_is_written_once(leader: Leader) -> None:
    leader.client.faults = [("resolve", "lost reply")]
    assert leader.submit(leader.operation()) == [Answer(AnswerKind.DONE)]
    assert leader.verdicts() == ["enqueued"]


@pytest.mark.parametrize("fault", ["lost reply", "cut"])
@pytest.mark.parametrize(
    "outcome", [Sent(PublishOutcome.ACCEPTED), UNANSWERED, NO_EXCHANGE], ids=["accepted", "unknown", "refused"]
)
def test_retry_after_a_failed_confirmation_sends_nothing_again(leader: Leader, fault: str, outcome: Sent) -> None:
    leader.publisher.outcomes = [outcome]
    leader.client.faults = [("resolve", fault)] * 50
    operation = leader.operation()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            leader.submit(operation)
    leader.client.faults = []
    (answer,) = leader.submit(operation)
    kind, row, verdicts = {
        "accepted": ("done", "enqueued", ["enqueued"]),
        "unknown": ("uncertain", "uncertain", ["uncertain"]),
        "refused": ("error", None, []),
    }[outcome.outcome]
    assert answer.kind == kind
    assert leader.row().get("verdict") == row
    assert leader.verdicts() == verdicts
    assert leader.claims() == {}
    assert leader.publisher.accepted == ["message of entry"] * (outcome.outcome == "accepted")
    assert leader.publisher.outcomes == []


def test_retry_of_a_large_batch_continues_where_it_stopped(leader: Leader) -> None:
    """The finished part is answered from memory."""
    operations = [leader.operation(f"entry {number:02}") for number in range(50)]
    sends = 0

    def cut_at_the_thirtieth() -> None:
        nonlocal sends
        sends += 1
        if sends == 30:
            leader.client.faults = [("resolve", "cut")] * 50

    leader.publisher.before_send = cut_at_the_thirtieth
    with pytest.raises(StoreUnavailable):
        leader.submit(*operations)
    leader.client.faults = []
    assert leader.submit(*operations) == [Answer(AnswerKind.DONE)] * 50
    assert sends == 50
    assert sorted(leader.publisher.accepted) == sorted(f"message of entry {number:02}" for number in range(50))
    assert leader.verdicts() == ["enqueued"] * 50
    assert leader.claims() == {}


# --- Terms


def test_claim_under_an_ended_term_is_refused(leader: Leader, shared_redis: RedisServer) -> None:
    """Nothing is sent."""
    successor(shared_redis)
    with pytest.raises(FencedOff):
        leader.submit(leader.operation())
    assert leader.publisher.accepted == []
    assert leader.claims() == {}


def test_newer_term_records_an_open_claim_as_uncertain(leader: Leader, shared_redis: RedisServer) -> None:
    """With every record of the claim, and once."""
    leave_claimed(leader)
    new = successor(shared_redis)
    claims = new.open_claims()
    assert [(claim.entry, claim.nonce, claim.policy) for claim in claims] == [("entry", "nonce of one", "skip")]
    rows = new.dispatcher.give_up(new.term, claims)
    assert rows["entry"].raw == new.raw()
    assert new.row()["verdict"] == "uncertain"
    assert new.verdicts() == ["uncertain"]
    assert new.claims() == {"id of entry": "uncertain"}
    assert new.open_claims() == []
    assert new.dispatcher.give_up(new.term, claims) == {}
    assert new.verdicts() == ["uncertain"]


def test_ended_term_gives_up_no_claim(leader: Leader, shared_redis: RedisServer) -> None:
    leave_claimed(leader)
    claims = leader.open_claims()
    successor(shared_redis)
    with pytest.raises(FencedOff):
        leader.dispatcher.give_up(leader.term, claims)
    assert leader.claims() == {"id of entry": "open"}


@pytest.mark.parametrize("settled", [False, True], ids=["before it is settled", "after it was settled"])
@pytest.mark.parametrize("way", ["stand by", "lead again"])
def test_late_confirmation_turns_uncertain_into_enqueued(
    leader: Leader, shared_redis: RedisServer, settled: bool, way: str
) -> None:
    """The broker accepted the message and Redis was unreachable. No other change of a verdict is allowed."""
    leader.client.faults = [("resolve", "cut")] * 50
    operation = leader.operation()
    with pytest.raises(StoreUnavailable):
        leader.submit(operation)
    new = successor(shared_redis)
    if settled:
        new.dispatcher.give_up(new.term, new.open_claims())
    leader.client.faults = []
    if way == "stand by":
        leader.dispatcher.confirm_late()
    else:
        leader.term = leader.lead("three")
        leader.submit(Operation("other", "", LedgerRow(base=NOON, verdict="armed").encoded()))
    assert leader.raw() == operation.row
    assert leader.claims() == {}
    assert leader.verdicts() == (["uncertain", "enqueued"] if settled else ["enqueued"])
    leader.dispatcher.confirm_late()
    assert leader.verdicts()[-1:] == ["enqueued"]
    assert leader.verdicts().count("enqueued") == 1


def test_late_confirmation_does_not_replace_a_newer_row(leader: Leader, shared_redis: RedisServer) -> None:
    """The journal has the verdict, the ledger the newer occurrence."""
    leader.client.faults = [("resolve", "cut")] * 50
    with pytest.raises(StoreUnavailable):
        leader.submit(leader.operation())
    new = successor(shared_redis)
    newer = replace(new.operation(expected=new.raw(), rev=2), task_id="id of the next")
    assert new.submit(newer) == [Answer(AnswerKind.DONE)]
    leader.client.faults = []
    leader.dispatcher.confirm_late()
    assert leader.raw() == newer.row
    assert leader.verdicts() == ["enqueued", "enqueued"]


def test_claim_of_an_ended_term_is_not_taken_back(leader: Leader, shared_redis: RedisServer) -> None:
    """A newer leader has read the claimed row, and resolves the claim."""
    leader.publisher.outcomes = [NO_EXCHANGE]
    leader.publisher.before_send = lambda: successor(shared_redis)
    with pytest.raises(FencedOff):
        leader.submit(leader.operation())
    assert leader.row()["verdict"] == "claimed"
    assert leader.claims() == {"id of entry": "open"}


def test_uncertain_claim_is_removed_after_a_day(leader: Leader, shared_redis: RedisServer) -> None:
    """A recent one is kept for a late confirmation."""
    leave_claimed(leader)
    new = successor(shared_redis)
    new.dispatcher.give_up(new.term, new.open_claims())
    field = "id of entry"
    recent = json.dumps({"ms": new.term.epoch - 1000})
    new.admin.hset(KEYS.claims, "recent", f"uncertain {recent}")
    new.open_claims()
    assert field not in new.claims()
    assert new.claims() == {"recent": "uncertain"}


def leave_claimed(leader: Leader) -> None:
    """Leave a claim open, as a process that is killed after its claim does."""

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    leader.publisher.before_send = die
    with pytest.raises(Killed):
        leader.submit(leader.operation())
    assert leader.claims() == {"id of entry": "open"}


# --- Operations of requests


def request_step(leader: Leader, step: int = 1) -> Operation:
    leader.admin.hset(KEYS.requests, "request", "x")
    operation = leader.operation()
    return replace(operation, row="", request="request", step=step, expected="")


def test_request_step_is_sent_once_and_leaves_the_row_alone(leader: Leader, shared_redis: RedisServer) -> None:
    """Another leader that tries the same step finds that it was begun, and does not send it."""
    assert leader.submit(request_step(leader)) == [Answer(AnswerKind.DONE)]
    assert leader.raw() == ""
    new = successor(shared_redis)
    assert new.submit(request_step(new)) == [Answer(AnswerKind.MINE)]
    assert new.publisher.accepted == []
    assert new.verdicts() == ["enqueued"]


def test_request_step_whose_claim_lost_its_reply_is_sent_by_the_retry(leader: Leader) -> None:
    leader.client.faults = [("claim", "lost reply")]
    operation = request_step(leader)
    with pytest.raises(StoreUnavailable):
        leader.submit(operation)
    assert leader.submit(operation) == [Answer(AnswerKind.DONE)]
    assert len(leader.publisher.accepted) == 1


def test_request_step_that_was_left_open_is_uncertain(leader: Leader, shared_redis: RedisServer) -> None:
    """It has no row. Its record goes to the journal."""
    leader.publisher.before_send = interrupt
    with pytest.raises(KeyboardInterrupt):
        leader.submit(request_step(leader))
    new = successor(shared_redis)
    assert new.dispatcher.give_up(new.term, new.open_claims()) == {}
    assert new.verdicts() == ["uncertain"]
    assert new.raw() == ""


def interrupt() -> None:
    raise KeyboardInterrupt


# --- Stop of the process


def stopped(leader: Leader) -> Callable[[], None]:
    """Return a handler that stops the leader in the middle of a send, as SIGTERM does."""

    def stop() -> None:
        leader.dispatcher.hand_back(leader.term, leader.admin)
        leader.store.release(leader.term, TermEnd.SHUTDOWN)
        raise SystemExit

    return stop


def test_stop_in_mid_batch_leaves_only_the_current_message_open(leader: Leader, shared_redis: RedisServer) -> None:
    """Accepted messages are recorded, and unsent ones are left to the next leader."""
    stop = stopped(leader)
    leader.publisher.before_send = lambda: stop() if len(leader.publisher.accepted) == 3 else None
    with pytest.raises(SystemExit):
        leader.submit(*(leader.operation(f"entry {number}") for number in range(10)))
    assert [leader.row(f"entry {number}").get("verdict") for number in range(10)] == [
        *["enqueued"] * 3,
        "claimed",
        *[None] * 6,
    ]
    assert leader.verdicts() == ["enqueued"] * 3
    assert leader.claims() == {"id of entry 3": "open"}
    after = successor(shared_redis)
    assert [answer.kind for answer in after.submit(*(after.operation(f"entry {n}") for n in range(4, 10)))] == [
        "done"
    ] * 6


def test_stop_without_claims_makes_no_round_trip(leader: Leader) -> None:
    leader.submit(leader.operation())
    leader.dispatcher.hand_back(leader.term, None)  # type: ignore[arg-type]
    assert leader.row()["verdict"] == "enqueued"


def test_stop_without_redis_raises_nothing(leader: Leader, shared_redis: RedisServer) -> None:
    """It runs in a signal handler."""
    away = Unreliable(shared_redis.client(decode_responses=False))
    away.faults = [("resolve", "cut")] * 2

    def stop() -> None:
        leader.dispatcher.hand_back(leader.term, away)  # type: ignore[arg-type]
        raise SystemExit

    leader.publisher.before_send = stop
    with pytest.raises(SystemExit):
        leader.submit(leader.operation("one"), leader.operation("two"))
    assert leader.claims() == {"id of one": "open", "id of two": "open"}


def test_publish_that_raised_an_unexpected_error_is_not_repeated(leader: Leader) -> None:
    """The message may have been sent."""
    operation = leader.operation()
    leader.publisher.outcomes = [ValueError("a bug")]
    with pytest.raises(ValueError, match="a bug"):
        leader.submit(operation)
    assert [answer.kind for answer in leader.submit(operation)] == ["uncertain"]
    assert leader.publisher.accepted == []
    assert leader.row()["verdict"] == "uncertain"
