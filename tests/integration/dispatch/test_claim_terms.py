"""Claims that outlive their term, and claims of requests."""

import json
from dataclasses import replace

import pytest

from ha_beat import events
from ha_beat.dispatch import Answer, FencedOff, Operation
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import AnswerKind, SkipReason
from tests.support.claim_leader import ARMED, DONE, KEYS, NO_EXCHANGE, OPEN, UNANSWERED, Leader, leave_claimed


def test_claim_under_an_ended_term_is_refused(leader: Leader):
    leader.successor()
    with pytest.raises(FencedOff):
        leader.submit(leader.operation())
    assert (leader.publisher.accepted, leader.claims()) == ([], {})


def test_newer_term_records_an_open_claim_as_uncertain(leader: Leader):
    """With every record of the claim, and only once."""
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
    """Submit an operation whose message is sent and whose resolution fails until the faults are removed."""
    leader.client.faults = [("resolve", "cut")] * 50
    operation = leader.operation()
    with pytest.raises(StoreUnavailable):
        leader.submit(operation)
    return operation


@pytest.mark.parametrize("uncertain", [False, True], ids=["before it is uncertain", "after it was uncertain"])
@pytest.mark.parametrize("way", ["stand by", "lead again"])
def test_late_confirmation_turns_uncertain_into_enqueued(leader: Leader, uncertain: bool, way: str):
    """The broker accepted the message while Redis was unreachable. No other change of a verdict is allowed."""
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
    # Then there is nothing to write.
    leader.client.faults = [("resolve", "cut")]
    leader.dispatcher.confirm_late()


@pytest.mark.parametrize("tried", [False, True], ids=["first attempt", "after a failed attempt"])
def test_stop_confirms_a_message_of_an_earlier_term(leader: Leader, tried: bool):
    leave_unconfirmed(leader)
    current = leader.lead("again")
    if tried:
        with pytest.raises(StoreUnavailable):
            leader.dispatcher.confirm_late()
    leader.dispatcher.resolve_own(current, leader.admin)
    assert (leader.claims(), leader.journal()) == ({}, ["enqueued"])


def test_confirmation_after_the_end_of_the_term_is_written_too(leader: Leader):
    """The message is accepted while a newer leader records its claim as uncertain."""
    leader.publisher.before_send = lambda _: leader.successor().record_open_claims_as_uncertain()
    operation = leader.operation()
    assert leader.submit(operation) == [DONE]
    assert (leader.raw(), leader.claims(), leader.journal()) == (operation.row, {}, ["uncertain", "enqueued"])


def test_late_confirmation_does_not_replace_a_newer_row(leader: Leader):
    """The verdict is in the journal. The ledger keeps the newer occurrence."""
    leave_unconfirmed(leader)
    new = leader.successor()
    newer = replace(new.operation(expected=new.raw(), rev=2), task_id="id of the next")
    assert new.submit(newer) == [DONE]
    leader.client.faults = []
    leader.dispatcher.confirm_late()
    assert (leader.raw(), leader.journal()) == (newer.row, ["enqueued", "enqueued"])


def test_unsent_claim_of_an_ended_term_is_marked(leader: Leader):
    """A newer leader has read the claimed row, so the newer leader restores the row."""
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


def test_claim_whose_write_was_not_answered_is_marked_after_the_term(leader: Leader):
    """Its message was never sent, so the next leader need not wait for it."""
    leader.client.faults = [("claim", "lost reply")]
    with pytest.raises(StoreUnavailable):
        leader.submit(leader.operation())
    new = leader.successor()
    leader.dispatcher.confirm_late()
    assert leader.claims() == {"id of entry": "unsent"}
    assert new.dispatcher.take_back(new.term)
    assert new.submit(new.operation()) == [DONE]


def test_claim_of_unknown_outcome_is_not_marked_as_unsent(leader: Leader):
    """The next leader would send the message a second time."""
    leader.publisher.outcomes = [UNANSWERED]
    leave_unconfirmed(leader)
    leader.successor()
    leader.client.faults = []
    leader.dispatcher.confirm_late()
    assert leader.claims() == OPEN


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
    """Another leader that tries the same step finds it begun and does not send it."""
    assert leader.submit(leader.request_step()) == [DONE]
    new = leader.successor()
    assert new.submit(new.request_step()) == [Answer(AnswerKind.MINE)]
    assert new.publisher.accepted == []
    assert (new.raw(), new.journal()) == ("", ["enqueued"])


def test_request_step_that_was_left_open_is_uncertain(leader: Leader):
    """A request's step has no row. Its record goes to the journal."""
    leave_claimed(leader, leader.request_step())
    new = leader.successor()
    assert new.record_open_claims_as_uncertain() == {}
    assert (new.raw(), new.journal()) == ("", ["uncertain"])
