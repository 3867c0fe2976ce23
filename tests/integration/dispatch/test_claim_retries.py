"""Batches that are submitted again: a reply was lost, or Redis refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ha_beat.dispatch.brokers.adapter import Sent
from ha_beat.errors import StoreRefused, StoreUnavailable
from tests.support.claim_leader import ACCEPTED, ARMED, DONE, NO_EXCHANGE, UNANSWERED, Leader

# --- Lost replies


@pytest.mark.parametrize("of_request", [False, True], ids=["occurrence", "request"])
def test_lost_reply_to_a_claim_is_detected_by_the_retry(leader: Leader, of_request: bool):
    """The message is sent once, and the journal has one verdict."""
    leader.client.faults = [("claim", "lost reply")]
    operation = leader.request_step() if of_request else leader.operation()
    with pytest.raises(StoreUnavailable):
        leader.submit(operation)
    assert leader.publisher.accepted == []
    assert leader.submit(operation) == [DONE]
    assert leader.publisher.accepted == ["message of entry"]
    assert leader.journal() == ["enqueued"]


def test_confirmation_whose_reply_was_lost_is_written_once(leader: Leader):
    # On a busy machine, the first attempt may take longer than the usual limit.
    leader.dispatcher._batches._confirm_for = 30.0
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
    """Operations that were finished are answered without a round trip."""
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


# --- Refused batches


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


@pytest.fixture
def full(leader: Leader) -> Iterator[Callable[[bool], object]]:
    """Return a function that makes Redis refuse all writes, or accept them again."""

    def switch(on: bool) -> None:
        leader.admin.config_set("maxmemory", int(on))

    yield switch
    switch(False)


def test_refused_batch_is_dropped_and_another_one_takes_its_place(leader: Leader, full: Callable[[bool], object]):
    """By then its entries may have another row, or none."""
    leader.submit(leader.operation())
    batch = leader.batch(30)
    full(True)
    with pytest.raises(StoreRefused):
        leader.submit(*batch)
    full(False)
    assert leader.dispatcher.drop_refused(batch)
    assert leader.publisher.accepted == ["message of entry"]
    assert leader.submit_kinds(replace(batch[0], row=batch[1].row)) == ["done"]
    assert leader.raw("entry 00") == batch[1].row
    assert leader.claims() == {}


def test_batch_with_a_sent_message_is_not_dropped_when_it_is_refused(leader: Leader, full: Callable[[bool], object]):
    batch = leader.batch(30)
    leader.publisher.before_send = lambda _: full(True)
    with pytest.raises(StoreRefused):
        leader.submit(*batch)
    # A full server still takes the confirmation of the first message.
    assert leader.journal() == ["enqueued"]
    full(False)
    leader.publisher.before_send = lambda _: None
    assert not leader.dispatcher.drop_refused(batch)
    assert set(leader.submit_kinds(*batch)) == {"done"}
    assert len(leader.publisher.accepted) == 30
