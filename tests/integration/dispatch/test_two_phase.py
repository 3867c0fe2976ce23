"""Claim, publish, confirm: what the ledger, the journal and the broker have after each thing that can go wrong.

The publisher is a fake one that keeps what it accepts; the store and its scripts are a real Redis.
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
    """A client whose script calls lose their replies, or don't arrive, as told."""

    def __init__(self, client: Any) -> None:
        self._client = client
        #: Taken one by one by calls whose script contains the mark: "lost reply" or "cut".
        self.faults: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def evalsha(self, sha: str, numkeys: int, *args: Any) -> Any:
        fault = self.faults[0] if self.faults else None
        what = "resolve" if str(args[3]) == KEYS.claims else "claim"
        if fault is None or fault[0] != what:
            return self._client.evalsha(sha, numkeys, *args)
        if fault[1] == "lost reply":
            self._client.evalsha(sha, numkeys, *args)  # where the script is not loaded yet, it is not this fault's turn
        self.faults.pop(0)
        raise redis_errors.ConnectionError(fault[1])


class Desk:
    """A leader at its dispatcher, and what a test may see of its world."""

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
        """The state of each claim by its key."""
        return {key: value.split(" ")[0] for key, value in self.admin.hgetall(KEYS.claims).items()}

    def open_claims(self) -> list[OpenClaim]:
        return self.dispatcher.open_claims(self.term)

    def verdicts(self) -> list[str]:
        """Those in the journal, in order."""
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
def desk(shared_redis: RedisServer) -> Desk:
    return Desk(shared_redis)


def successor(server: RedisServer) -> Desk:
    return Desk(server, "two")


UNANSWERED = Sent(PublishOutcome.UNKNOWN, "cut", broken=True)
NACK = Sent(PublishOutcome.UNKNOWN, "nacked")
NO_EXCHANGE = Sent(PublishOutcome.REFUSED, "no such exchange")


# --- Each outcome under each policy


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_accepted_is_enqueued_and_leaves_no_claim(desk: Desk, policy: UncertainPolicy) -> None:
    """The ledger has the final row, the journal one verdict."""
    operation = desk.operation(policy=policy)
    assert desk.submit(operation) == [Answer(AnswerKind.DONE)]
    assert desk.raw() == operation.row
    assert desk.claims() == {}
    assert desk.verdicts() == ["enqueued"]
    assert desk.publisher.accepted == ["message of entry"]


def test_the_claim_is_written_before_the_message_is_sent(desk: Desk) -> None:
    """Whoever finds it knows the entry, the occurrence and the policy."""
    found: list[Any] = []
    desk.publisher.before_send = lambda: found.extend([desk.claims(), desk.row()["verdict"], desk.verdicts()])
    desk.submit(desk.operation())
    assert found == [{"id of entry": "open"}, "claimed", []]


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_refused_for_certain_leaves_everything_as_it_was(desk: Desk, policy: UncertainPolicy) -> None:
    """The entry's row is what it was, nothing is in the journal: it may be tried again."""
    desk.submit(desk.operation())
    before = desk.raw()
    desk.publisher.outcomes = [NO_EXCHANGE]
    answer = desk.submit(desk.operation(policy=policy, expected=before, rev=2))
    assert answer == [Answer(AnswerKind.ERROR, "no such exchange")]
    assert desk.raw() == before
    assert desk.claims() == {}
    assert desk.verdicts() == ["enqueued"]
    assert desk.submit(desk.operation(policy=policy, expected=before, rev=2)) == [Answer(AnswerKind.DONE)]
    assert len(desk.publisher.accepted) == 2


def test_an_entry_without_a_row_has_none_again(desk: Desk) -> None:
    """After its very first message was refused."""
    desk.publisher.outcomes = [NO_EXCHANGE]
    desk.submit(desk.operation())
    assert desk.raw() == ""


@pytest.mark.parametrize("sent", [UNANSWERED, NACK], ids=["cut", "nack"])
def test_unknown_is_uncertain_under_skip_and_says_why(desk: Desk, sent: Sent) -> None:
    """The row the enqueuer gets is the one in the ledger, and the next occurrence follows on it."""
    desk.publisher.outcomes = [sent]
    (answer,) = desk.submit(desk.operation())
    assert answer == Answer(AnswerKind.UNCERTAIN, desk.raw())
    assert desk.row()["verdict"] == "uncertain"
    assert (desk.row()["why"], desk.row()["detail"]) == (UncertainReason.NO_ANSWER, sent.detail)
    assert desk.claims() == {}
    assert desk.verdicts() == ["uncertain"]
    assert desk.submit(desk.operation(expected=answer.detail, rev=2)) == [Answer(AnswerKind.DONE)]


def test_unknown_stays_claimed_under_republish_and_is_sent_again(desk: Desk) -> None:
    """Until one sending is answered; the journal has one verdict in the end."""
    desk.publisher.outcomes = [UNANSWERED]
    (answer,) = desk.submit(desk.operation(policy=UncertainPolicy.REPUBLISH))
    assert answer == Answer(AnswerKind.AGAIN, desk.raw())
    assert desk.row()["verdict"] == "claimed"
    assert desk.claims() == {"id of entry": "open"}
    again = desk.operation(policy=UncertainPolicy.REPUBLISH, expected=answer.detail)
    assert desk.submit(again) == [Answer(AnswerKind.DONE)]
    assert desk.raw() == again.row
    assert desk.claims() == {}
    assert desk.verdicts() == ["enqueued"]


@pytest.mark.parametrize("second", [NO_EXCHANGE, StoreUnavailable("away", acted=False)], ids=["refused", "unsent"])
def test_what_may_have_been_accepted_is_never_taken_back(desk: Desk, second: Any) -> None:
    """A second sending that certainly failed says nothing of the first: the claim stays."""
    desk.publisher.outcomes = [UNANSWERED, second]
    (answer,) = desk.submit(desk.operation(policy=UncertainPolicy.REPUBLISH))
    (answer,) = desk.submit(desk.operation(policy=UncertainPolicy.REPUBLISH, expected=answer.detail))
    assert answer == Answer(AnswerKind.AGAIN, desk.raw())
    assert desk.claims() == {"id of entry": "open"}
    assert desk.row()["verdict"] == "claimed"


def test_a_message_that_not_every_queue_took_is_enqueued_and_said_to_be_partial(desk: Desk) -> None:
    """Sent again, the others would have it twice."""
    desk.publisher.outcomes = [Sent(PublishOutcome.ACCEPTED, "not every queue took it: one")]
    operation = desk.operation()
    assert desk.submit(operation) == [Answer(AnswerKind.PARTIAL, "not every queue took it: one")]
    assert desk.raw() == operation.row
    assert desk.claims() == {}


# --- A broker out of reach


def test_nothing_is_claimed_while_the_broker_is_away(desk: Desk) -> None:
    """What needs no message is written all the same."""
    desk.publisher.away = "refused"
    armed = Operation("other", "", LedgerRow(base=NOON, verdict="armed").encoded())
    assert desk.submit(desk.operation(), armed) == [Answer(AnswerKind.UNSENT, "refused"), Answer(AnswerKind.DONE)]
    assert desk.raw() == ""
    assert desk.row("other")["verdict"] == "armed"


def test_after_a_broken_connection_the_rest_of_the_batch_is_not_sent(desk: Desk) -> None:
    """Each would wait for a timeout, and the main loop with it. Their claims are taken back."""
    desk.publisher.outcomes = [Sent(PublishOutcome.ACCEPTED), UNANSWERED]
    answers = desk.submit(*(desk.operation(f"entry {number}") for number in range(30)))
    assert [answer.kind for answer in answers] == ["done", "uncertain", *["unsent"] * 28]
    assert desk.publisher.accepted == ["message of entry 0"]
    assert desk.claims() == {}
    assert desk.raw("entry 2") == ""
    assert desk.raw("entry 29") == ""
    assert desk.verdicts() == ["enqueued", "uncertain"]


def test_a_refusal_that_concerns_one_message_does_not_stop_the_others(desk: Desk) -> None:
    """Nor does a nack."""
    desk.publisher.outcomes = [NO_EXCHANGE, NACK]
    answers = desk.submit(*(desk.operation(f"entry {number}") for number in range(4)))
    assert [answer.kind for answer in answers] == ["error", "uncertain", "done", "done"]


def test_trust_that_ends_in_mid_batch_ends_the_sending(desk: Desk) -> None:
    """What was claimed and not sent is taken back, as long as nobody else leads."""
    count = 0

    def lose_trust_at_the_third() -> None:
        nonlocal count
        count += 1
        desk.trusted = count < 3

    desk.publisher.before_send = lose_trust_at_the_third
    answers = desk.submit(*(desk.operation(f"entry {number}") for number in range(6)))
    assert [answer.kind for answer in answers] == ["done"] * 3 + ["unsent"] * 3
    assert len(desk.publisher.accepted) == 3
    assert desk.claims() == {}


# --- Lost replies


def test_a_lost_reply_to_the_claim_is_found_out_by_the_retry(desk: Desk) -> None:
    """One message, one verdict."""
    desk.client.faults = [("claim", "lost reply")]
    operation = desk.operation()
    with pytest.raises(StoreUnavailable):
        desk.submit(operation)
    assert desk.publisher.accepted == []
    assert desk.submit(operation) == [Answer(AnswerKind.DONE)]
    assert desk.publisher.accepted == ["message of entry"]
    assert desk.verdicts() == ["enqueued"]


def test_a_lost_reply_to_the_confirmation_is_asked_again_at_once(desk: Desk) -> None:
    """The second time it was there already, and no second record is written."""
    desk.client.faults = [("resolve", "lost reply")]
    assert desk.submit(desk.operation()) == [Answer(AnswerKind.DONE)]
    assert desk.verdicts() == ["enqueued"]


@pytest.mark.parametrize("fault", ["lost reply", "cut"])
@pytest.mark.parametrize(
    "outcome", [Sent(PublishOutcome.ACCEPTED), UNANSWERED, NO_EXCHANGE], ids=["accepted", "unknown", "refused"]
)
def test_a_batch_whose_confirmation_fails_is_retried_without_sending_again(
    desk: Desk, fault: str, outcome: Sent
) -> None:
    """However often, and whatever the broker said."""
    desk.publisher.outcomes = [outcome]
    desk.client.faults = [("resolve", fault)] * 50
    operation = desk.operation()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            desk.submit(operation)
    desk.client.faults = []
    (answer,) = desk.submit(operation)
    kind, row, verdicts = {
        "accepted": ("done", "enqueued", ["enqueued"]),
        "unknown": ("uncertain", "uncertain", ["uncertain"]),
        "refused": ("error", None, []),
    }[outcome.outcome]
    assert answer.kind == kind
    assert desk.row().get("verdict") == row
    assert desk.verdicts() == verdicts
    assert desk.claims() == {}
    assert desk.publisher.accepted == ["message of entry"] * (outcome.outcome == "accepted")
    assert desk.publisher.outcomes == []


def test_a_batch_of_several_rounds_goes_on_where_it_stopped(desk: Desk) -> None:
    """What an earlier try has finished is answered from memory, and not sent again."""
    operations = [desk.operation(f"entry {number:02}") for number in range(50)]
    sends = 0

    def cut_at_the_thirtieth() -> None:
        nonlocal sends
        sends += 1
        if sends == 30:
            desk.client.faults = [("resolve", "cut")] * 50

    desk.publisher.before_send = cut_at_the_thirtieth
    with pytest.raises(StoreUnavailable):
        desk.submit(*operations)
    desk.client.faults = []
    assert desk.submit(*operations) == [Answer(AnswerKind.DONE)] * 50
    assert sends == 50
    assert sorted(desk.publisher.accepted) == sorted(f"message of entry {number:02}" for number in range(50))
    assert desk.verdicts() == ["enqueued"] * 50
    assert desk.claims() == {}


# --- Terms


def test_a_claim_is_refused_under_a_term_that_is_over(desk: Desk, shared_redis: RedisServer) -> None:
    """Before anything is sent."""
    successor(shared_redis)
    with pytest.raises(FencedOff):
        desk.submit(desk.operation())
    assert desk.publisher.accepted == []
    assert desk.claims() == {}


def test_a_newer_term_settles_what_was_left_claimed(desk: Desk, shared_redis: RedisServer) -> None:
    """As uncertain, with every record that the claim carried, and once."""
    leave_claimed(desk)
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


def test_an_old_term_settles_nothing(desk: Desk, shared_redis: RedisServer) -> None:
    """Giving up is fenced."""
    leave_claimed(desk)
    claims = desk.open_claims()
    successor(shared_redis)
    with pytest.raises(FencedOff):
        desk.dispatcher.give_up(desk.term, claims)
    assert desk.claims() == {"id of entry": "open"}


@pytest.mark.parametrize("settled", [False, True], ids=["before it is settled", "after it was settled"])
@pytest.mark.parametrize("way", ["stand by", "lead again"])
def test_a_late_confirmation_turns_uncertain_into_enqueued(
    desk: Desk, shared_redis: RedisServer, settled: bool, way: str
) -> None:
    """The broker had accepted it and Redis could not be told in time: the one change of verdict that is allowed."""
    desk.client.faults = [("resolve", "cut")] * 50
    operation = desk.operation()
    with pytest.raises(StoreUnavailable):
        desk.submit(operation)
    new = successor(shared_redis)
    if settled:
        new.dispatcher.give_up(new.term, new.open_claims())
    desk.client.faults = []
    if way == "stand by":
        desk.dispatcher.confirm_late()
    else:
        desk.term = desk.lead("three")
        desk.submit(Operation("other", "", LedgerRow(base=NOON, verdict="armed").encoded()))
    assert desk.raw() == operation.row
    assert desk.claims() == {}
    assert desk.verdicts() == (["uncertain", "enqueued"] if settled else ["enqueued"])
    desk.dispatcher.confirm_late()
    assert desk.verdicts()[-1:] == ["enqueued"]
    assert desk.verdicts().count("enqueued") == 1


def test_a_late_confirmation_leaves_a_row_alone_that_has_moved_on(desk: Desk, shared_redis: RedisServer) -> None:
    """The journal has the verdict, the ledger the newer occurrence."""
    desk.client.faults = [("resolve", "cut")] * 50
    with pytest.raises(StoreUnavailable):
        desk.submit(desk.operation())
    new = successor(shared_redis)
    newer = replace(new.operation(expected=new.raw(), rev=2), task_id="id of the next")
    assert new.submit(newer) == [Answer(AnswerKind.DONE)]
    desk.client.faults = []
    desk.dispatcher.confirm_late()
    assert desk.raw() == newer.row
    assert desk.verdicts() == ["enqueued", "enqueued"]


def test_taking_a_claim_back_is_fenced(desk: Desk, shared_redis: RedisServer) -> None:
    """A newer leader has counted on the claimed row: it settles the claim."""
    desk.publisher.outcomes = [NO_EXCHANGE]
    desk.publisher.before_send = lambda: successor(shared_redis)
    with pytest.raises(FencedOff):
        desk.submit(desk.operation())
    assert desk.row()["verdict"] == "claimed"
    assert desk.claims() == {"id of entry": "open"}


def test_what_was_settled_long_ago_is_removed(desk: Desk, shared_redis: RedisServer) -> None:
    """Nobody will confirm it any more; what is recent is kept."""
    leave_claimed(desk)
    new = successor(shared_redis)
    new.dispatcher.give_up(new.term, new.open_claims())
    field = "id of entry"
    recent = json.dumps({"ms": new.term.epoch - 1000})
    new.admin.hset(KEYS.claims, "recent", f"uncertain {recent}")
    new.open_claims()
    assert field not in new.claims()
    assert new.claims() == {"recent": "uncertain"}


def leave_claimed(desk: Desk) -> None:
    """As if the process had been killed after its claim."""

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    desk.publisher.before_send = die
    with pytest.raises(Killed):
        desk.submit(desk.operation())
    assert desk.claims() == {"id of entry": "open"}


# --- Operations of requests


def request_step(desk: Desk, step: int = 1) -> Operation:
    desk.admin.hset(KEYS.requests, "request", "x")
    operation = desk.operation()
    return replace(operation, row="", request="request", step=step, expected="")


def test_a_step_of_a_request_is_sent_once_and_leaves_the_row_alone(desk: Desk, shared_redis: RedisServer) -> None:
    """Another leader that tries the same step finds that it was begun, and does not send it."""
    assert desk.submit(request_step(desk)) == [Answer(AnswerKind.DONE)]
    assert desk.raw() == ""
    new = successor(shared_redis)
    assert new.submit(request_step(new)) == [Answer(AnswerKind.MINE)]
    assert new.publisher.accepted == []
    assert new.verdicts() == ["enqueued"]


def test_a_step_whose_claim_lost_its_reply_is_sent_by_the_retry(desk: Desk) -> None:
    """By the process that made the claim."""
    desk.client.faults = [("claim", "lost reply")]
    operation = request_step(desk)
    with pytest.raises(StoreUnavailable):
        desk.submit(operation)
    assert desk.submit(operation) == [Answer(AnswerKind.DONE)]
    assert len(desk.publisher.accepted) == 1


def test_a_step_that_was_left_claimed_is_uncertain(desk: Desk, shared_redis: RedisServer) -> None:
    """It has no row, and its record goes to the journal."""
    desk.publisher.before_send = interrupt
    with pytest.raises(KeyboardInterrupt):
        desk.submit(request_step(desk))
    new = successor(shared_redis)
    assert new.dispatcher.give_up(new.term, new.open_claims()) == {}
    assert new.verdicts() == ["uncertain"]
    assert new.raw() == ""


def interrupt() -> None:
    raise KeyboardInterrupt


# --- Told to stop


def stopped(desk: Desk) -> Callable[[], None]:
    """As SIGTERM does it: a handler that runs in the middle of a send, and ends the process."""

    def stop() -> None:
        desk.dispatcher.hand_back(desk.term, desk.admin)
        desk.store.release(desk.term, TermEnd.SHUTDOWN)
        raise SystemExit

    return stop


def test_a_stop_in_the_middle_of_a_batch_leaves_in_doubt_only_what_was_under_way(
    desk: Desk, shared_redis: RedisServer
) -> None:
    """What had been accepted is recorded, and what had not been sent is left to the next leader: nothing is lost."""
    stop = stopped(desk)
    desk.publisher.before_send = lambda: stop() if len(desk.publisher.accepted) == 3 else None
    with pytest.raises(SystemExit):
        desk.submit(*(desk.operation(f"entry {number}") for number in range(10)))
    assert [desk.row(f"entry {number}").get("verdict") for number in range(10)] == [
        *["enqueued"] * 3,
        "claimed",
        *[None] * 6,
    ]
    assert desk.verdicts() == ["enqueued"] * 3
    assert desk.claims() == {"id of entry 3": "open"}
    after = successor(shared_redis)
    assert [answer.kind for answer in after.submit(*(after.operation(f"entry {n}") for n in range(4, 10)))] == [
        "done"
    ] * 6


def test_a_stop_with_nothing_claimed_asks_redis_nothing(desk: Desk) -> None:
    """It is to be quick."""
    desk.submit(desk.operation())
    desk.dispatcher.hand_back(desk.term, None)  # type: ignore[arg-type]
    assert desk.row()["verdict"] == "enqueued"


def test_a_stop_without_redis_raises_nothing(desk: Desk, shared_redis: RedisServer) -> None:
    """It runs in a signal handler."""
    away = Unreliable(shared_redis.client(decode_responses=False))
    away.faults = [("resolve", "cut")] * 2

    def stop() -> None:
        desk.dispatcher.hand_back(desk.term, away)  # type: ignore[arg-type]
        raise SystemExit

    desk.publisher.before_send = stop
    with pytest.raises(SystemExit):
        desk.submit(desk.operation("one"), desk.operation("two"))
    assert desk.claims() == {"id of one": "open", "id of two": "open"}


def test_a_sending_that_was_broken_off_is_not_begun_again(desk: Desk) -> None:
    """By an error that nobody foresaw: the message may be out."""
    operation = desk.operation()
    desk.publisher.outcomes = [ValueError("a bug")]
    with pytest.raises(ValueError, match="a bug"):
        desk.submit(operation)
    assert [answer.kind for answer in desk.submit(operation)] == ["uncertain"]
    assert desk.publisher.accepted == []
    assert desk.row()["verdict"] == "uncertain"
