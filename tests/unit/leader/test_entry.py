"""State of an entry while this replica leads: its row, and its decisions during and after a pause."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ha_beat.leader.entry import EntryState
from ha_beat.reasons import MisfirePolicy, SkipReason, Verdict
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.ledger import LedgerRow
from tests.support.entries import scheduled, state_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row() -> LedgerRow:
    written = LedgerRow(NOW, Verdict.ARMED, following=NOW, nonce="n", signature="s")
    return replace(written, raw=written.encoded())


def test_resting_entries_share_the_text_of_their_rows():
    """Most of 100,000 entries are armed together and not due for long. The row is parsed once it is needed."""
    one, two = (EntryState(scheduled(name), NOW, row()) for name in ("one", "two"))
    for state in (one, two):
        state.rest()
    assert one._row is two._row
    assert one.row == two.row == row()
    assert one.row is one.row
    assert one.expected == row().raw


@pytest.mark.parametrize("known", [None, replace(row(), raw="")], ids=["no row", "no text"])
def test_row_without_a_text_is_kept(known):
    state = EntryState(scheduled(), NOW, known)
    state.rest()
    assert state.row is known


# --- Pauses


def minutes(count: float) -> datetime:
    return NOW + timedelta(minutes=count)


def pause(until: datetime | None = None) -> EntryPause:
    return EntryPause("e", 1, until_ms=round(until.timestamp() * 1000) if until else 0)


@pytest.mark.parametrize("policy", list(MisfirePolicy))
@pytest.mark.parametrize(
    ("until", "count", "position"), [(None, 3, minutes(3)), (minutes(2.5), 2, minutes(2)), (minutes(9), 3, minutes(3))]
)
def test_due_instants_of_a_pause_are_skipped_at_once(policy, until, count, position):
    state = state_of(scheduled(every=60, last_run=NOW, misfire=MisfireRules(policy)))
    state.due_at = minutes(1)
    decision = state.decide(minutes(3.5), pause(until))
    assert (decision.send, decision.position) == (None, position)
    assert (decision.skipped.reason, decision.skipped.count) == (SkipReason.PAUSED, count)


def test_instant_after_the_end_of_a_pause_is_sent():
    state = state_of(scheduled(every=60, last_run=NOW))
    state.due_at = minutes(1)
    assert state.decide(minutes(1), pause(minutes(0.5))).send == minutes(1)


def test_entry_that_must_be_asked_is_skipped_too():
    state = state_of(scheduled(every=None, last_run=NOW))
    state.due_at = minutes(1)
    decision = state.decide(minutes(2), pause())
    assert (decision.send, decision.skipped.count) == (None, 1)
    assert state.decide(minutes(2), pause(minutes(0.5))).send == minutes(1)
