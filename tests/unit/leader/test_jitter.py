"""Jitter: each occurrence is enqueued a fixed part of it after its instant."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat.errors import ConfigurationError
from ha_beat.leader.due_queue import DueQueue
from ha_beat.leader.entry import EntryState
from ha_beat.leader.planner import Planner
from ha_beat.reasons import MisfirePolicy, SkipReason
from ha_beat.schedule.entry_options import EntryOptions
from ha_beat.schedule.misfire import MisfireRules
from tests.support.entries import scheduled, state_of

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def entry(name: str = "e", jitter: float = 30.0, **fields: Any) -> EntryState:
    return state_of(scheduled(name, every=60, last_run=NOON, jitter=jitter, **fields))


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_occurrences_are_spread_over_the_jitter_alike_in_each_replica():
    offsets = [(entry(str(n)).send_at(at(60)) - at(60)).total_seconds() for n in range(200)]
    assert offsets == [(entry(str(n)).send_at(at(60)) - at(60)).total_seconds() for n in range(200)]
    assert 0 <= min(offsets) < 3 < 27 < max(offsets) <= 30
    assert entry().send_at(at(60)) - at(60) != entry().send_at(at(120)) - at(120)
    assert entry(jitter=0).send_at(at(60)) == at(60)


def test_occurrence_stays_before_the_next_instant_and_the_end():
    for number in range(50):
        state = entry(str(number), jitter=3600)
        assert at(60) <= state.send_at(at(60)) < at(120)
        assert entry(str(number), jitter=3600, expires=at(65)).send_at(at(60)) < at(65)


def test_entry_is_popped_after_its_offset_and_not_overdue_before():
    state, queue = entry(), DueQueue()
    Planner(None, print).plan(queue, state, NOON)  # type: ignore[arg-type]  # the source is not asked
    sends_at = state.send_at(at(60))
    assert (state.due_at, queue.next_due(), queue.overdue(sends_at)) == (at(60), sends_at, 0.0)
    assert list(queue.pop_due(sends_at - timedelta(microseconds=1), 9)) == []
    assert list(queue.pop_due(sends_at, 9)) == [state]
    assert state.decide(sends_at).send == at(60)
    queue.put(state, at(60), sends_at + timedelta(seconds=1))
    assert queue.overdue(sends_at + timedelta(seconds=2)) == 2


@pytest.mark.parametrize("policy", list(MisfirePolicy))
def test_newest_instant_is_not_sent_before_its_offset(policy):
    rules = EntryOptions.of("e", {"ha_beat": {"jitter": 30, "misfire": policy}}, MisfireRules(), None).misfire
    state = entry(misfire=rules)
    state.due_at = at(60)
    early = state.send_at(at(120)) - timedelta(milliseconds=1)
    decision = state.decide(early)
    assert decision.position == at(60)
    assert decision.send == (None if policy is MisfirePolicy.SKIP else at(60))


def test_offset_is_no_misfire():
    options = EntryOptions.of("e", {"ha_beat": {"jitter": 30, "misfire_grace": 1}}, MisfireRules(), None)
    state = entry(misfire=options.misfire)
    state.due_at = at(60)
    assert state.decide(state.send_at(at(60))).send == at(60)
    late = state.decide(at(60 + 31.5))
    assert late.skipped.reason is SkipReason.MISFIRE_GRACE


@pytest.mark.parametrize("jitter", [-1, "x", 1e6])
def test_invalid_jitter_is_refused(jitter):
    with pytest.raises(ConfigurationError, match="jitter"):
        EntryOptions.of("e", {"ha_beat": {"jitter": jitter}}, MisfireRules(), None)
