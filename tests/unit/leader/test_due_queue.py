"""Due queue with many entries."""

import gc
import random
from datetime import UTC, datetime, timedelta

from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from tests.support.entries import scheduled, state_of


def state(name: str) -> EntryState:
    return state_of(scheduled(name, every=None))


def queue_with(*states: EntryState) -> tuple[DueQueue, datetime]:
    """Return a queue of entries that are due now, and this time."""
    queue, now = DueQueue(), datetime.now(UTC)
    for each in states:
        queue.put(each, now)
    return queue, now


def test_upcoming_does_not_trigger_a_garbage_collection():
    """With 50,000 entries a collection stops the main loop for a second, and the status asks every two seconds."""
    queue, now = queue_with()
    for number in range(10_000):
        queue.put(state(f"e{number}"), now + timedelta(seconds=(number * 7919) % 10_000))
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    upcoming = queue.upcoming(20)
    assert gc.get_stats()[0]["collections"] - before <= 3
    assert [at for at, _ in upcoming] == [now + timedelta(seconds=seconds) for seconds in range(20)]


def test_places_of_dropped_entries_are_bounded():
    """Entries that come and go, each due in a year, and one that is put back again and again."""
    stays = state("stays")
    queue, now = queue_with(stays)
    for number in range(5_000):
        comes = state(f"e{number}")
        queue.put(comes, now + timedelta(days=365))
        queue.put(stays, now, now + timedelta(days=number))
        queue.drop(comes)
        assert len(queue._heap) < 100
    assert list(queue.pop_due(now + timedelta(days=5_000), 10)) == [stays]


def test_upcoming_includes_entries_that_are_dispatched_or_retried_later():
    choose, (queue, now) = random.Random(3), queue_with()
    states = [state(f"e{number}") for number in range(50)]
    for turn in range(1_000):
        one, at = choose.choice(states), now + timedelta(seconds=choose.randrange(100))
        match choose.randrange(4):
            case 0:
                queue.put(one, at, at + timedelta(seconds=choose.randrange(2_000)))
            case 1:
                queue.put(one, at, sends_at=at + timedelta(seconds=3))
            case 2:
                list(queue.pop_due(at, 5))
            case _ if queue.get(one.id) is not None:
                queue.drop(one)
        expected = sorted((each.sends_at, each.ticket) for each in queue.entries())
        assert [(at, each.ticket) for at, each in queue.upcoming(20)] == expected[:20]
        assert queue.overdue(now + timedelta(days=1)) >= 86_400 - 103 or not len(queue), turn


def test_entry_that_falls_due_in_a_burst_does_not_wait_for_its_end():
    """The entries of the burst keep at least half of each batch, and their order."""
    burst, newer = ([state(f"{name}{number:04}") for number in range(count)] for name, count in (("e", 5000), ("n", 8)))
    queue, now = queue_with(*burst)
    for each in newer:
        queue.put(each, now + timedelta(seconds=0.02))
    popped = []
    for turn in range(8):
        at = now + timedelta(seconds=0.01 * turn)
        assert queue.backlog(at) == len(burst) - len(popped) + (8 if turn >= 2 else 0)
        batch = queue.pop_due(at, 10)
        popped += batch[5:] if turn == 7 else batch
    assert batch[:5] == newer[:5]
    assert queue.upcoming(1) == [(now, burst[0])]
    while queue.next_due() is not None:
        popped += [each for each in queue.pop_due(now + timedelta(seconds=1), 500) if each in burst]
    assert popped == burst


def test_entry_that_falls_due_in_a_burst_has_a_turn_in_batches_of_one():
    """A slow broker takes one message in the time of a batch."""
    queue, now = queue_with(*(state(f"e{number:02}") for number in range(20)))
    for number in range(2):
        queue.put(state(f"newer{number}"), now + timedelta(seconds=0.1))
    popped = [each.id for _ in range(5) for each in queue.pop_due(now + timedelta(seconds=1), 1)]
    assert popped == ["newer0", "e00", "newer1", "e01", "e02"]


def test_entry_due_before_a_burst_goes_first_if_time_was_set_back():
    burst = [state(f"e{number}") for number in range(20)]
    queue, now = queue_with(*burst)
    popped = queue.pop_due(now + timedelta(seconds=1), 5)
    hour_before, soon = now - timedelta(hours=1), state("soon")
    queue.put(soon, hour_before + timedelta(seconds=1))
    assert queue.pop_due(hour_before, 5) == []
    assert queue.next_due() == hour_before + timedelta(seconds=1)
    assert queue.pop_due(hour_before + timedelta(seconds=1), 5) == [soon]
    assert popped + queue.pop_due(now, 50) == burst
