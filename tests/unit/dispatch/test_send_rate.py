"""Measured speed of a broker, and the size of chunks and batches that follows from it."""

import pytest

from ha_beat.dispatch.claims.send_rate import CHUNK, SendRate

BUDGET = 0.5


class Broker:
    """Broker that answers after ``round_trip``, and then every ``each`` seconds."""

    def __init__(self, round_trip: float, each: float) -> None:
        self.round_trip = round_trip
        self.each = each
        self.rate = SendRate()

    def chunks(self, count: int) -> list[int]:
        """Send chunks that fit the budget, and return their sizes."""
        return [self.chunk() for _ in range(count)]

    def chunk(self) -> int:
        size = self.rate.in_chunk(BUDGET)
        self.rate.measured(((size - 1) * self.each + 0.0005 * size) / size, self.round_trip)
        return size


def test_first_chunk_has_one_message():
    assert Broker(0.001, 0.0).chunks(2) == [1, CHUNK]


def test_distant_broker_gets_whole_chunks():
    """A round trip may take more than half of the budget."""
    broker = Broker(0.4, 0.0)
    assert broker.chunks(3) == [1, CHUNK, CHUNK]
    assert CHUNK <= broker.rate.in_batch(BUDGET) < 2 * CHUNK + 5


@pytest.mark.parametrize("round_trip", [0.3, 2.0])
def test_distant_broker_gets_whole_chunks_soon_after_a_slow_first_message(round_trip: float):
    """The first message on a connection also waits until its queue is declared."""
    broker = Broker(round_trip, 0.0)
    broker.rate.measured(4 * round_trip, 0.0)
    assert broker.chunks(11)[-1] == CHUNK
    assert broker.rate.in_batch(BUDGET) >= CHUNK


def test_slow_broker_gets_what_it_answers_in_the_budget():
    """It answers one message after the other, so a chunk takes the time of all its messages."""
    assert sum(Broker(0.3, 0.3).chunks(50)[2:]) / 48 < 3


def test_broker_that_answers_each_message_alone_gets_few():
    rate = SendRate()
    rate.measured(0.2, 0.0)
    assert (rate.in_chunk(BUDGET), rate.in_batch(BUDGET)) == (2, 2)
    assert (rate.in_chunk(-0.1), rate.in_batch(0.0)) == (1, 1)


def test_slower_message_counts_fully_and_a_faster_one_by_half():
    rate = SendRate()
    for seconds in (0.01, 0.1):
        rate.measured(seconds, 0.0)
    assert rate.in_batch(BUDGET) == 5
    rate.measured(0.01, 0.0)
    assert rate.in_batch(BUDGET) == 9


@pytest.mark.parametrize("seconds", [BUDGET, float("inf")])
def test_number_of_messages_is_bounded(seconds: float):
    rate = SendRate()
    assert rate.in_batch(seconds) == 10_000
    rate.measured(0.0, 0.0)
    assert (rate.in_chunk(seconds), rate.in_batch(seconds)) == (CHUNK, 10_000)
    assert rate.in_chunk(-seconds) == 1
