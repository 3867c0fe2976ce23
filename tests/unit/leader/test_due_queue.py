"""Due queue with many entries."""

import gc
import random
from datetime import UTC, datetime, timedelta

from ha_beat.leader.due_queue import DueQueue
from tests.support.entries import scheduled, state_of


def test_upcoming_does_not_trigger_a_garbage_collection():
    """With 50,000 entries a collection stops the main loop for a second, and the status asks every two seconds."""
    queue, now = DueQueue(), datetime.now(UTC)
    for number in range(10_000):
        queue.put(state_of(scheduled(f"e{number}", every=None)), now + timedelta(seconds=(number * 7919) % 10_000))
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    upcoming = queue.upcoming(20)
    assert gc.get_stats()[0]["collections"] - before <= 3
    assert [at for at, _ in upcoming] == [now + timedelta(seconds=seconds) for seconds in range(20)]


def test_places_of_dropped_entries_are_bounded():
    """Entries that come and go, each due in a year, and one that is put back again and again."""
    queue, now = DueQueue(), datetime.now(UTC)
    stays = state_of(scheduled("stays", every=None))
    queue.put(stays, now)
    for number in range(5_000):
        comes = state_of(scheduled(f"e{number}", every=None))
        queue.put(comes, now + timedelta(days=365))
        queue.put(stays, now, now + timedelta(days=number))
        queue.drop(comes)
        assert len(queue._heap) < 100
    assert list(queue.pop_due(now + timedelta(days=5_000), 10)) == [stays]


def test_upcoming_includes_entries_that_are_dispatched_or_retried_later():
    choose, queue, now = random.Random(3), DueQueue(), datetime.now(UTC)
    states = [state_of(scheduled(f"e{number}", every=None)) for number in range(50)]
    for turn in range(1_000):
        state, at = choose.choice(states), now + timedelta(seconds=choose.randrange(100))
        match choose.randrange(4):
            case 0:
                queue.put(state, at, at + timedelta(seconds=choose.randrange(2_000)))
            case 1:
                queue.put(state, at, sends_at=at + timedelta(seconds=3))
            case 2:
                list(queue.pop_due(at, 5))
            case _ if queue.get(state.id) is not None:
                queue.drop(state)
        expected = sorted((state.sends_at, state.ticket) for state in queue.entries())
        assert [(at, state.ticket) for at, state in queue.upcoming(20)] == expected[:20]
        assert queue.overdue(now + timedelta(days=1)) >= 86_400 - 103 or not len(queue), turn


def test_entry_that_falls_due_in_a_burst_does_not_wait_for_its_end():
    """Those of the burst keep at least half of each batch, and their order."""
    queue, now = DueQueue(), datetime.now(UTC)
    burst = [state_of(scheduled(f"e{number:04}", every=None)) for number in range(5_000)]
    for state in burst:
        queue.put(state, now)
    newer = [state_of(scheduled(f"newer{number}", every=None)) for number in range(8)]
    for state in newer:
        queue.put(state, now + timedelta(seconds=0.02))
    popped = []
    for turn in range(8):
        at = now + timedelta(seconds=0.01 * turn)
        assert queue.backlog(at) == len(burst) - len(popped) + (8 if turn >= 2 else 0)
        batch = queue.pop_due(at, 10)
        popped += batch[5:] if turn == 7 else batch
    assert batch[:5] == newer[:5]
    assert [(at, state) for at, state in queue.upcoming(1)] == [(now, burst[0])]
    while queue.next_due() is not None:
        popped += [state for state in queue.pop_due(now + timedelta(seconds=1), 500) if state in burst]
    assert popped == burst


def test_entry_that_falls_due_in_a_burst_has_a_turn_in_batches_of_one():
    """A slow broker takes one message in the time of a batch."""
    queue, now = DueQueue(), datetime.now(UTC)
    for number in range(20):
        queue.put(state_of(scheduled(f"e{number:02}", every=None)), now)
    for number in range(2):
        queue.put(state_of(scheduled(f"newer{number}", every=None)), now + timedelta(seconds=0.1))
    popped = [state.id for _ in range(5) for state in queue.pop_due(now + timedelta(seconds=1), 1)]
    assert popped == ["newer0", "e00", "newer1", "e01", "e02"]


def test_entry_due_before_a_burst_goes_first_if_time_was_set_back():
    queue, now = DueQueue(), datetime.now(UTC)
    burst = [state_of(scheduled(f"e{number}", every=None)) for number in range(20)]
    for state in burst:
        queue.put(state, now)
    popped = queue.pop_due(now + timedelta(seconds=1), 5)
    hour_before, soon = now - timedelta(hours=1), state_of(scheduled("soon", every=None))
    queue.put(soon, hour_before + timedelta(seconds=1))
    assert queue.pop_due(hour_before, 5) == []
    assert queue.next_due() == hour_before + timedelta(seconds=1)
    assert queue.pop_due(hour_before + timedelta(seconds=1), 5) == [soon]
    assert popped + queue.pop_due(now, 50) == burst
