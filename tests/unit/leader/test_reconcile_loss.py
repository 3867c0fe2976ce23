"""Reconciliation after a loss of state: what may have been enqueued is skipped once, and nothing else."""

import pytest

from ha_beat.leader.planner import Absence
from ha_beat.reasons import SkipReason, Verdict
from ha_beat.schedule.misfire import Skipped
from tests.unit.leader.reconciling import (
    CERTAIN,
    NOW,
    UNREADABLE,
    absent,
    at,
    entry,
    place,
    place_one,
    row,
    shadow,
    total,
)


def test_occurrences_in_doubt_are_skipped_as_one_range():
    position, operation = place_one(entry(), shadow=shadow(e=-35), loss=total(+2))
    assert operation.decision.skipped == Skipped(at(-25), at(5), 3, SkipReason.STATE_LOSS)
    assert position == at(-5)
    assert '"state_loss"' in operation.operation.records[0]


@pytest.mark.parametrize(
    ("one", "catch_up"),
    [(entry(), True), (entry(signature="other"), True), (entry(since=at(-3), signature="other"), False)],
    ids=["coalesced", "edited", "edited, not caught up"],
)
def test_skip_of_occurrences_in_doubt_after_a_loss_proves_nothing(one, catch_up):
    done = place(one, rows={"e": row(-35, following=at(-25))}, loss=total(+2), catch_up=catch_up)
    (state,) = done.states
    state.due_at = state.next_due()
    skipped = done.operations[0].decision.skipped if done.operations else state.decide(NOW).skipped
    assert (skipped.first, skipped.reason) == (at(-25), SkipReason.STATE_LOSS)


def test_removed_entry_is_in_doubt_after_a_loss():
    (operation,) = place(rows={"e": row(-35, following=at(-25))}, loss=total(+2), absence=CERTAIN).operations
    assert operation.decision.skipped.reason is SkipReason.STATE_LOSS


@pytest.mark.parametrize(("loss", "expected"), [(total(+2), -5), (None, -35)])
def test_entry_with_a_lost_row_is_not_treated_as_new(loss, expected):
    """Redis restarted from a snapshot that is older than the entry and has other rows."""
    done = place(entry(), rows={"other": row(-3)}, shadow=shadow(e=-35), loss=loss, absence=CERTAIN)
    (state,) = done.states
    assert state.position == at(expected)
    operation = next(operation for operation in done.operations if operation.state is state)
    if loss:
        assert operation.decision.skipped.first == at(-25)


@pytest.mark.parametrize(
    ("catch_up", "known", "expected"), [(False, -3, -3), (True, -35, -35)], ids=["nothing in doubt", "catching up"]
)
def test_entry_is_only_armed_after_a_loss_that_skips_nothing(catch_up, known, expected):
    position, operation = place_one(entry(), shadow=shadow(e=known), loss=total(+2), catch_up=catch_up)
    assert (position, operation.row.verdict) == (at(expected), Verdict.ARMED)


def test_store_that_lags_does_not_repeat_occurrences_after_a_loss():
    """A database's rows may be minutes behind."""
    position, operation = place_one(entry(at(-180)), loss=total(+2))
    assert (position, operation.row.verdict) == (NOW, Verdict.SKIPPED)


def test_entry_without_recurrence_is_asked_after_the_floor_of_a_loss():
    assert place_one(entry(at(-180), recurrence=None), loss=total(+2))[0] == at(+2)


def test_lost_position_of_an_entry_of_another_release_is_restored():
    """Otherwise each change of leader would find the ledger behind and skip occurrences."""
    known = shadow(e=-3, other=-60)
    assert known.ahead_of({}, NOW)
    operations = place(entry(), shadow=known, loss=total(2)).operations
    restored = {operation.state.id: operation.row for operation in operations}
    assert restored["other"].base == at(-60)
    assert not known.ahead_of({entry_id: found.raw for entry_id, found in restored.items()}, NOW)


@pytest.mark.parametrize(("certain", "verdict"), [(True, Verdict.ABSENT), (False, Verdict.ARMED)])
def test_row_behind_the_shadow_is_restored_once(certain, verdict):
    done = place(rows={"e": row(-13)}, shadow=shadow(e=-3), loss=total(+2), absence=Absence(certain))
    (operation,) = done.operations
    assert (operation.row.base, operation.row.verdict) == (at(-3), verdict)


@pytest.mark.parametrize("absence", [None, Absence(certain=False)])
def test_entry_of_another_release_stays_in_doubt_until_that_one_leads(absence):
    (operation,) = place(rows={"e": row(-35)}, loss=total(+2), absence=absence).operations
    assert (operation.row.base, operation.row.verdict) == (at(-35), Verdict.ARMED)
    _, later = place_one(entry(), operation.row.raw)
    assert (later.row.reason, later.row.base) == (SkipReason.STATE_LOSS, at(-5))
    assert later.row.in_doubt_until is None


def test_row_of_another_release_that_is_not_in_doubt_is_left_alone():
    """The row is not due yet, past the floor, absent or unreadable, or occurrences in doubt are caught up."""
    for raw in (row(-35, following=at(+60)), row(+5), absent(-35), UNREADABLE):
        assert place(rows={"e": raw}, loss=total(+2)).operations == []
    assert place(rows={"e": row(-35)}, loss=total(+2), catch_up=True).operations == []
