"""Outcome of a publish: the contents of ledger, journal and broker, and which entries stay busy."""

import time
from dataclasses import replace
from typing import Any

import pytest

from ha_beat.budget import Pace
from ha_beat.clock import SystemClock
from ha_beat.dispatch import Answer
from ha_beat.dispatch.brokers.adapter import Sent
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import AnswerKind, UncertainPolicy, UncertainReason
from ha_beat.store.scripts import text
from tests.support.claim_leader import (
    ACCEPTED,
    ARMED,
    DONE,
    KEYS,
    NACK,
    NO_EXCHANGE,
    OPEN,
    REPUBLISH,
    UNANSWERED,
    Leader,
)

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
    """The message may be sent again."""
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
    """The answer has the ledger's row, which the next occurrence replaces."""
    leader.publisher.outcomes = [sent]
    assert leader.submit(leader.operation()) == [Answer(AnswerKind.UNCERTAIN, leader.raw())]
    row = leader.row()
    assert (row["verdict"], row["why"], row["detail"]) == ("uncertain", UncertainReason.NO_ANSWER, sent.detail)
    assert (leader.claims(), leader.journal()) == ({}, ["uncertain"])
    assert leader.submit(leader.operation(expected=leader.raw(), rev=2)) == [DONE]


def test_unknown_outcome_stays_claimed_under_republish(leader: Leader):
    """The message is sent until a publish is answered. Then the journal has one verdict."""
    leader.publisher.outcomes = [UNANSWERED]
    assert leader.submit(leader.operation(policy=REPUBLISH)) == [Answer(AnswerKind.AGAIN, leader.raw())]
    assert (leader.verdict(), leader.claims()) == ("claimed", OPEN)
    again = leader.operation(policy=REPUBLISH, expected=leader.raw())
    assert leader.submit(again) == [DONE]
    assert (leader.raw(), leader.claims(), leader.journal()) == (again.row, {}, ["enqueued"])


@pytest.mark.parametrize("second", [NO_EXCHANGE, StoreUnavailable("away", acted=False)], ids=["refused", "unsent"])
def test_claim_of_a_maybe_accepted_message_is_not_taken_back(leader: Leader, second: Any):
    """The first publish may have been accepted, although the second certainly failed."""
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
    """An operation without a message is still written."""
    leader.publisher.away = "refused"
    assert leader.submit(leader.operation(), ARMED) == [Answer(AnswerKind.UNSENT, "refused"), DONE]
    assert (leader.raw(), leader.verdict("other")) == ("", "armed")
    assert str(leader.dispatcher.obstacle) == "refused"
    leader.publisher.away = ""
    assert leader.submit(leader.operation()) == [DONE]
    assert leader.dispatcher.obstacle is None


def test_connection_that_fails_before_a_message_is_the_obstacle(leader: Leader):
    leader.publisher.outcomes = [StoreUnavailable("away", acted=False)]
    assert leader.submit_kinds(leader.operation()) == ["unsent"]
    assert str(leader.dispatcher.obstacle) == "away"


def test_batch_whose_time_is_spent_is_left_but_for_what_was_begun(leader: Leader):
    """At least one message is sent. A request's step and a claim that was begun do not wait either."""
    leader.dispatcher._batches._pace = Pace(SystemClock(), seconds=0.0)
    first, *others = leader.batch(4)
    leader.client.faults = [("claim", "lost reply")]
    with pytest.raises(StoreUnavailable):
        leader.submit(first)
    kinds = leader.submit_kinds(*others, first, leader.request_step(), ARMED)
    assert kinds == ["done", "deferred", "deferred", "done", "done", "done"]
    assert leader.claims() == {}


def test_broken_connection_ends_the_publishing_of_a_batch(leader: Leader):
    """Each further message would wait for a timeout. The claims of the others are taken back."""
    leader.publisher.outcomes = [ACCEPTED, UNANSWERED]
    assert leader.submit_kinds(*leader.batch(30)) == ["done", "uncertain", *["unsent"] * 28]
    assert leader.publisher.accepted == ["message of entry 00"]
    assert (leader.claims(), leader.journal()) == ({}, ["enqueued", "uncertain"])
    assert leader.raw("entry 02") == leader.raw("entry 29") == ""


def test_refusal_of_one_message_does_not_stop_the_others(leader: Leader):
    """The same for a nack."""
    leader.publisher.outcomes = [NO_EXCHANGE, NACK]
    assert leader.submit_kinds(*leader.batch(4)) == ["error", "uncertain", "done", "done"]


def test_end_of_trust_in_mid_batch_ends_the_publishing(leader: Leader):
    """The claims that were not sent are taken back while the lease still names this leader."""
    leader.publisher.before_send = lambda number: setattr(leader, "trusted", number < 3)
    assert leader.submit_kinds(*leader.batch(6)) == ["done"] * 3 + ["unsent"] * 3
    assert len(leader.publisher.accepted) == 3
    assert leader.claims() == {}


# --- Overlap


@pytest.mark.parametrize(("sent", "busy"), [(NO_EXCHANGE, False), (UNANSWERED, True), (ACCEPTED, True)])
def test_message_that_was_certainly_not_sent_keeps_no_entry_busy(leader: Leader, sent: Sent, busy: bool):
    leader.publisher.outcomes = [sent]
    leader.submit(replace(leader.operation(), busy_ms=60_000, overlaps=False))
    assert leader.admin.hexists(KEYS.busy, "e:entry") is busy


def test_message_that_was_not_sent_leaves_the_mark_of_one_that_runs(leader: Leader):
    leader.admin.hset(KEYS.busy, "e:entry", f"{round(time.time() * 1000)} the running message")
    leader.publisher.outcomes = [NO_EXCHANGE]
    leader.submit(replace(leader.operation(), busy_ms=60_000))
    assert text(leader.admin.hget(KEYS.busy, "e:entry")).endswith(" the running message")


def test_message_that_an_earlier_leader_did_not_send_keeps_no_entry_busy(leader: Leader):
    leader.trusted = False
    leader.client.faults = [("resolve", "cut")] * 50
    with pytest.raises(StoreUnavailable):
        leader.submit(replace(leader.operation(), busy_ms=60_000, overlaps=False))
    assert leader.admin.hexists(KEYS.busy, "e:entry")
    leader.client.faults = []
    successor = leader.successor()
    leader.dispatcher.confirm_late()
    successor.dispatcher.take_back(successor.term)
    assert not leader.admin.hexists(KEYS.busy, "e:entry")
