"""The leader's entries in order of due time, where there are many of them."""

from __future__ import annotations

import gc
from datetime import UTC, datetime, timedelta

from ha_beat.leader.due_queue import Agenda, Slot
from ha_beat.schedule.misfire import MisfireRules


def test_a_look_at_what_comes_next_does_not_wake_the_garbage_collector() -> None:
    """With 50,000 entries each look, every two seconds, had it walk over all that there is: a second's standstill."""
    agenda, now = Agenda(), datetime.now(UTC)
    for number in range(20_000):
        slot = Slot(f"e{number}", None, None, MisfireRules(), "s", now)
        agenda.put(slot, now + timedelta(seconds=(number * 7919) % 20_000))
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    upcoming = agenda.upcoming(20)
    assert gc.get_stats()[0]["collections"] - before <= 3
    assert [at for at, _ in upcoming] == [now + timedelta(seconds=seconds) for seconds in range(20)]
