"""Decisions of an entry that is paused, or was until a moment ago."""

from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.reasons import MisfirePolicy, SkipReason
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.store.entry_pauses import EntryPause
from tests.support.entries import scheduled, state_of

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def minutes(count: float) -> datetime:
    return NOON + timedelta(minutes=count)


def pause(until: datetime | None = None) -> EntryPause:
    return EntryPause("e", 1, until_ms=round(until.timestamp() * 1000) if until else 0)


@pytest.mark.parametrize("policy", list(MisfirePolicy))
@pytest.mark.parametrize(
    ("until", "count", "position"), [(None, 3, minutes(3)), (minutes(2.5), 2, minutes(2)), (minutes(9), 3, minutes(3))]
)
def test_due_instants_of_a_pause_are_skipped_at_once(policy, until, count, position):
    state = state_of(scheduled(every=60, last_run=NOON, misfire=MisfireRules(policy)))
    state.due_at = minutes(1)
    decision = state.decide(minutes(3.5), pause(until))
    assert (decision.send, decision.position) == (None, position)
    assert (decision.skipped.reason, decision.skipped.count) == (SkipReason.PAUSED, count)


def test_instant_after_the_end_of_a_pause_is_sent():
    state = state_of(scheduled(every=60, last_run=NOON))
    state.due_at = minutes(1)
    assert state.decide(minutes(1), pause(minutes(0.5))).send == minutes(1)


def test_entry_that_must_be_asked_is_skipped_too():
    state = state_of(scheduled(every=None, last_run=NOON))
    state.due_at = minutes(1)
    decision = state.decide(minutes(2), pause())
    assert (decision.send, decision.skipped.count) == (None, 1)
    assert state.decide(minutes(2), pause(minutes(0.5))).send == minutes(1)
