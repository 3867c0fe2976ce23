"""Stop of the process by a signal in the middle of a batch."""

import pytest

from ha_beat.reasons import TermEnd
from tests.support.claim_leader import DONE, Leader, Unreliable


def test_stop_in_mid_batch_leaves_only_the_current_message_open(leader: Leader):
    """Accepted messages are recorded. The next leader sends those that were not sent."""

    def stop_at_the_fourth(number: int) -> None:
        if number == 4:
            leader.dispatcher.resolve_own(leader.term, leader.admin)
            # Before the release, after which another leader may find the claims.
            assert leader.journal() == ["enqueued"] * 3
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
        # Not only afterwards: the process may be killed before the batch ends.
        assert leader.claims() == {"id of one": "open", "id of two": "unsent"}
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
    """The stop runs in a signal handler."""
    away = Unreliable(leader.server.client(decode_responses=False))
    away.faults = [("resolve", "cut")] * 2

    def stop(_: int) -> None:
        leader.dispatcher.resolve_own(leader.term, away)
        raise SystemExit

    leader.publisher.before_send = stop
    with pytest.raises(SystemExit):
        leader.submit(leader.operation("one"), leader.operation("two"))
    assert leader.claims() == {"id of one": "open"}


@pytest.mark.parametrize("place", ["send", "wait"])
def test_stop_in_mid_chunk_records_what_the_broker_has_accepted(leader: Leader, place: str):
    """The signal handler takes back the claims that were not sent. The broker's answers arrive afterwards."""
    leader.publisher.answers_late = True

    def stop() -> None:
        if leader.publisher.sends == 4:
            leader.publisher.before_wait = leader.publisher.before_send = lambda *_: None
            leader.dispatcher.resolve_own(leader.term, leader.admin)
            leader.store.release(leader.term, TermEnd.SHUTDOWN)
            raise SystemExit

    if place == "send":
        leader.publisher.before_send = lambda _: stop()
    else:
        leader.publisher.before_wait = stop
    with pytest.raises(SystemExit):
        leader.submit(*leader.batch(4 if place == "wait" else 10))
    accepted = 4 if place == "wait" else 3
    assert leader.journal() == ["enqueued"] * accepted
    assert list(leader.claims().values()) == ["open"] * (4 - accepted)
    new = leader.successor()
    assert new.submit(*new.batch(10)[4:]) == [DONE] * 6


def test_message_is_not_sent_after_a_stop_took_its_claim_back(leader: Leader):
    """The next leader sends it."""
    leader.submit(leader.operation("first"))
    leader.publisher.on_wait_if_alone = lambda: leader.dispatcher.resolve_own(leader.term, leader.admin)
    assert leader.submit_kinds(leader.operation()) == ["unsent"]
    assert (leader.publisher.sends, leader.claims(), leader.raw()) == (1, {}, "")


def test_second_signal_in_the_wait_for_answers_ends_the_batch(leader: Leader):
    leader.publisher.answers_late = True

    def stop() -> None:
        if leader.publisher.sends > 1:
            raise SystemExit

    leader.publisher.before_wait = stop
    with pytest.raises(SystemExit):
        leader.submit(*leader.batch(4))
    leader.publisher.answer()
    leader.dispatcher.resolve_own(leader.term, leader.admin)
    assert (leader.journal(), list(leader.claims().values())) == (["enqueued"], ["open"] * 3)
