"""Answers of the broker that arrive after several messages of a chunk were sent."""

from collections import Counter
from dataclasses import replace

import pytest

from ha_beat.dispatch.brokers.adapter import Sent
from ha_beat.dispatch.claims.send_rate import CHUNK
from ha_beat.reasons import UncertainPolicy
from tests.support.claim_leader import ACCEPTED, NACK, UNANSWERED, Killed, Leader, die


@pytest.mark.parametrize(("confirmed", "outcome"), [(3, UNANSWERED), (17, NACK)])
def test_broker_that_answers_some_of_a_chunk(leader: Leader, confirmed: int, outcome: Sent):
    """Confirmed messages are enqueued. Messages that were not sent after a broken connection are taken back."""
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
    """The wait for earlier answers has no limit. By its end, the next leader may have sent the message."""
    leader.submit(*leader.batch(1))
    leader.publisher.on_wait_if_alone = lambda: setattr(leader, "trusted", False)
    assert leader.submit_kinds(leader.operation("late")) == ["unsent"]
    assert leader.publisher.sends == 1


@pytest.mark.parametrize("policy", UncertainPolicy)
def test_death_before_the_answers_leaves_the_chunk_open(leader: Leader, policy: UncertainPolicy):
    """The next leader finds the chunk's claims, and no others."""
    leader.publisher.answers_late = True
    leader.publisher.before_wait = lambda: leader.publisher.sends > 1 and die()
    with pytest.raises(Killed):
        leader.submit(*[replace(each, uncertain=policy) for each in leader.batch(CHUNK + 3)])
    assert list(leader.claims().values()) == ["open"] * CHUNK
    assert leader.journal() == ["enqueued"]
    new = leader.successor()
    assert len(new.record_open_claims_as_uncertain()) == CHUNK
    assert new.submit_kinds(*new.batch(CHUNK + 3)[-2:]) == ["done"] * 2


def test_error_in_mid_chunk_leaves_the_other_answers_alone(leader: Leader):
    leader.publisher.answers_late = True
    leader.publisher.outcomes = [ACCEPTED] * 3 + [ValueError("a bug")]
    operations = leader.batch(5)
    with pytest.raises(ValueError, match="a bug"):
        leader.submit(*operations)
    assert leader.submit_kinds(*operations) == ["done"] * 3 + ["uncertain", "done"]
    assert len(leader.publisher.accepted) == 4
