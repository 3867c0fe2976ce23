"""Reconciliation: an entry starts at the latest known position, after what is in doubt, and never moves back."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pytest

from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.ledger_writer import LedgerWriter
from ha_beat.leader.loading.reconcile import ahead_of_clock
from ha_beat.leader.planner import Absence
from ha_beat.reasons import EntryFault, SkipReason, Verdict
from ha_beat.schedule.misfire import MisfireRules, Skipped
from ha_beat.schedule.occurrence import FOREVER, NEVER
from ha_beat.store.ledger import KEEP_ABSENT
from tests.support.entries import Every
from tests.unit.leader.reconciling import (
    CERTAIN,
    NOW,
    TERM,
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

# --- Position


@pytest.mark.parametrize(
    ("last_run", "raw", "expected"),
    [(NEVER, row(-3), -3), (at(-1), row(-3), -1), (at(-50), row(-3), -3), (at(-25), None, -25), (NEVER, None, 0)],
    ids=["from the row", "store is ahead", "store is behind", "new, with a run in its store", "new"],
)
def test_entry_starts_at_the_latest_known_position(last_run, raw, expected):
    assert place_one(entry(last_run), raw)[0] == at(expected)


def test_nothing_is_written_without_a_change_or_a_loss():
    """Not even the lost row of another release."""
    assert place(entry(), rows={"e": row(-3)}, shadow=shadow(e=-3, other=-60)).operations == []


def test_new_entry_is_armed_so_that_the_next_leader_counts_alike():
    done = place(entry())
    assert (done.new, done.states[0].position) == (1, NOW)
    assert done.operations[0].row.verdict is Verdict.ARMED


def test_shadow_ahead_of_the_ledger_is_written_back():
    position, operation = place_one(entry(), row(-13), shadow=shadow(e=-3))
    assert position == operation.row.base == at(-3)


def test_entries_are_not_changed():
    one = entry(at(-25))
    place(one)
    assert one == replace(one, last_run=at(-25))


def test_last_run_in_the_future_is_ignored():
    assert place_one(entry(at(+3600)))[0] == NOW
    assert place_one(entry(at(+3600)), row(-3))[0] == at(-3)


def test_ledger_position_in_the_future_is_kept_and_reported():
    """A second ahead is within the error of clocks."""
    done = place(entry(), rows={"e": row(+3600)})
    assert done.states[0].position == at(+3600)
    failure = ahead_of_clock(done.ahead)
    assert (failure.reason, at(+3600).isoformat() in failure.detail) == (EntryFault.AHEAD_OF_CLOCK, True)
    assert place(entry(), rows={"e": row(+1)}).ahead == []


def test_entry_with_an_unreadable_row_is_left_alone():
    done = place(entry(), rows={"e": UNREADABLE})
    assert (done.states, done.operations) == ([], [])
    assert [failure.reason for failure in done.failures] == [EntryFault.ROW_UNREADABLE]


def test_second_entry_with_the_same_id_is_left_out_and_reported():
    first, second = entry(at(-5)), entry(at(-7), name="the second")
    done = place(first, second)
    assert [state.entry for state in done.states] == [first]
    assert [(failure.entry, failure.reason) for failure in done.failures] == [("the second", EntryFault.DUPLICATE_ID)]


def test_entry_whose_schedule_raises_does_not_affect_others():
    class Broken(Every):
        def next_after(self, instant: datetime) -> datetime:
            raise OverflowError("date value out of range")

    done = place(entry(id="broken", recurrence=Broken(10)), entry(), shadow=shadow(e=-35, broken=-35), loss=total(+2))
    assert [state.id for state in done.states] == ["e"]
    assert [(failure.entry, failure.reason) for failure in done.failures] == [("broken", EntryFault.SCHEDULE_RAISES)]


# --- Edits


def test_edited_entry_does_not_owe_instants_before_the_edit():
    position, operation = place_one(entry(signature="other"), row(-300))
    assert (position, operation.row.verdict) == (NOW, Verdict.ARMED)
    assert place_one(entry(signature="other"), row(+5))[0] == at(+5), "it is not moved back"


def test_instants_that_an_edit_drops_are_recorded_as_skipped():
    """The row knows one instant of the old schedule. The range ends at the edit."""
    _, operation = place_one(entry(signature="other"), row(-300, following=at(-60)))
    assert operation.decision.skipped.first == at(-60)
    assert NOW < operation.decision.skipped.until < at(1)
    found = operation.row
    assert (found.verdict, found.reason, found.base) == (Verdict.SKIPPED, SkipReason.EDITED, NOW)
    assert (found.scheduled_at, found.following) == (at(-60), at(10))


@pytest.mark.parametrize(("stored", "following"), [(NEVER, +60), (at(-30), -60)], ids=["not due yet", "has run"])
def test_edited_entry_that_owed_nothing_is_only_armed(stored, following):
    _, operation = place_one(entry(stored, "other"), row(-300, following=at(following)))
    assert operation.row.verdict is Verdict.ARMED


def test_edited_entry_is_in_doubt_after_a_loss():
    """A replica whose clock is ahead may have enqueued the next instant of the new schedule."""
    _, operation = place_one(entry(at(-12), "other"), row(-300), loss=total(+12))
    assert (operation.row.reason, operation.row.base) == (SkipReason.STATE_LOSS, at(+10))


@dataclass(frozen=True)
class Single(Every):
    """A single instant, in seconds from now."""

    def next_after(self, instant: datetime) -> datetime:
        return at(self.seconds) if instant < at(self.seconds) else FOREVER

    @property
    def only(self) -> datetime:
        return at(self.seconds)


def single(seconds: float, signature: str = "other", **changes: Any) -> ScheduledEntry:
    """Return an entry as a clocked row has it."""
    changes = {"since": at(-1), **changes}
    return entry(signature=signature, recurrence=Single(seconds), once=True, **changes)


@pytest.mark.parametrize("raw", [None, row(-3)], ids=["new", "edited"])
def test_instant_in_the_future_is_not_a_position(raw):
    """The entry may be moved to an earlier time before it has run."""
    done = place(single(+3600, since=at(+3600)), rows={"e": raw} if raw else {})
    assert done.states[0].position == done.operations[0].row.base == NOW
    assert done.failures == []
    earlier = place(single(+60, "third"), rows={"e": done.operations[0].row.raw}).states[0]
    assert (earlier.next_due(), earlier.runs) == (at(+60), 0)
    interval = place(entry(signature="third", once=True), rows={"e": done.operations[0].row.raw}).states[0]
    assert interval.next_due() == at(+10)


@pytest.mark.parametrize(
    "raw",
    [row(-3, signature="s"), row(-3, Verdict.ARMED, run_count=0), row(-3, Verdict.ABSENT)],
    ids=["ran", "armed", "enabled again"],
)
def test_single_instant_moved_before_the_position_is_owed_once(raw):
    done = place(single(-60), rows={"e": raw})
    (state,), (operation,) = done.states, done.operations
    assert state.position < state.next_due() <= NOW
    assert state.runs == 0
    (later,) = place(single(-60), rows={"e": operation.row.raw}).states
    later.due_at = later.next_due()
    assert later.due_at == state.next_due()
    decision = later.decide(NOW)
    assert decision.send == state.next_due()
    later.record_row(LedgerWriter(TERM, NOW).row(later, decision.position, Verdict.ENQUEUED))
    assert (later.next_due(), later.runs) == (FOREVER, 1)
    (last,) = place(single(-60), rows={"e": later.expected}).states
    assert (last.next_due(), last.runs) == (FOREVER, 1)


def test_single_instant_moved_before_the_position_is_in_doubt_after_a_loss():
    armed = place(single(-60), rows={"e": row(-3)}).operations[0].row.raw
    (state,) = (done := place(single(-60), rows={"e": armed}, loss=total(+2))).states
    assert done.operations[0].row.reason is SkipReason.STATE_LOSS
    state.record_row(done.operations[0].row)
    assert state.next_due() == FOREVER


def test_single_instant_that_may_have_run_is_not_owed_again():
    """The ledger was lost; the shadow knows the position."""
    (state,) = place(single(-60), shadow=shadow(e=-60), loss=total(+2)).states
    assert state.next_due() == FOREVER


def test_recurring_entry_made_one_off_with_another_schedule_has_no_runs():
    assert place(single(+60), rows={"e": row(-3)}).states[0].runs == 0
    assert place(single(+60, "s"), rows={"e": row(-3)}).states[0].runs == 4


def test_instant_beyond_an_earlier_end_is_recorded_as_skipped():
    ended = entry(recurrence=Single(-999))
    done = place(ended, rows={"e": row(-30, following=at(-20))})
    assert done.operations[0].decision.skipped.reason is SkipReason.EDITED
    assert done.operations[0].row.base == at(-20)
    assert place(ended, rows={"e": row(-30, following=at(+20))}).operations == []
    assert place(entry(), rows={"e": row(-30, following=at(-20))}).operations == []


def test_overdue_instants_of_an_expired_entry_are_skipped():
    (state,) = place(entry(expires=at(-1)), rows={"e": row(-35)}).states
    state.due_at = state.next_due()
    decision = state.decide(NOW)
    assert (decision.send, decision.position) == (None, at(-5))
    assert decision.skipped == Skipped(at(-25), at(5), 3, SkipReason.EXPIRED)


# --- Disabled and enabled entries


@pytest.mark.parametrize(("following", "recorded"), [(-20, True), (0, True), (+20, False)])
def test_instant_due_before_the_entry_was_removed_is_recorded(following, recorded):
    (operation,) = place(rows={"e": row(-30, following=at(following))}, absence=CERTAIN).operations
    assert operation.row.verdict is Verdict.ABSENT
    assert (operation.decision is not None) is recorded
    if recorded:
        skipped = operation.decision.skipped
        assert (skipped.first, skipped.reason) == (at(following), SkipReason.REMOVED)
        assert NOW < skipped.until < at(1)
        assert '"removed"' in operation.operation.records[0]
    assert place(rows={"e": operation.row.raw}, absence=CERTAIN).operations == []


def test_one_off_entry_that_has_run_owes_nothing_when_it_is_removed():
    (state,) = place(entry(once=True), rows={"e": row(-30, run_count=0)}).states
    ran = LedgerWriter(TERM, at(-20)).row(state, at(-20), Verdict.ENQUEUED)
    (operation,) = place(rows={"e": ran.raw}, absence=CERTAIN).operations
    assert operation.decision is None


def test_instants_of_an_entry_disabled_without_a_leader_are_recorded():
    one = entry(cleared=True, run_count=4, misfire=MisfireRules(usual_lateness=15))
    _, operation = place_one(one, row(-303, following=at(-293)))
    assert (operation.decision.skipped.first, operation.row.reason) == (at(-293), SkipReason.REMOVED)
    assert operation.row.base == at(-23)


def test_entry_that_was_disabled_owes_nothing_and_counts_runs_from_zero():
    done = place(entry(at(-300)), rows={"e": absent(-3000)}, absence=CERTAIN)
    (state,) = done.states
    assert (state.position, state.runs) == (NOW, 0)
    assert done.operations[0].row.verdict is Verdict.ARMED


@pytest.mark.parametrize(("since", "written", "position", "runs"), [(-60, 0, at(-5), 4), (-3, 1, NOW, 0)])
def test_entry_that_an_earlier_leader_enabled_continues_from_its_row(since, written, position, runs):
    """A standby also sees that the entry was disabled, and may lead long after. Otherwise the entry starts now."""
    done = place(entry(since=at(since), resumed=True), rows={"e": row(-5)}, absence=CERTAIN)
    (state,) = done.states
    assert (len(done.operations), state.position, state.runs) == (written, position, runs)


def test_enabled_entry_counts_from_its_edit_only_if_edited():
    for signature, expected in (("other", -20), ("s", 0)):
        assert place_one(entry(signature=signature, since=at(-20)), absent(-500), absence=CERTAIN)[0] == at(expected)


@pytest.mark.parametrize(("ago", "expected", "rewritten"), [(303, -23, True), (3, -3, False)])
def test_entry_disabled_while_there_was_no_leader_owes_the_usual_lateness(ago, expected, rewritten):
    """The entry's store has a run count and no last run. The position stays an instant of the recurrence."""
    one = entry(cleared=True, run_count=4, misfire=MisfireRules(usual_lateness=15))
    position, operation = place_one(one, row(-ago))
    assert position == at(expected)
    assert (operation is not None) is rewritten
    if operation is not None:
        assert (operation.row.verdict, operation.row.base, operation.row.run_count) == (Verdict.ARMED, position, 4)


@pytest.mark.parametrize(("verdict", "run_count"), [(Verdict.ARMED, 4), (Verdict.SKIPPED, 4), (Verdict.ENQUEUED, 3)])
def test_stale_store_is_not_treated_as_disabled(verdict, run_count):
    assert place_one(entry(cleared=True, run_count=run_count), row(-303, verdict)) == (at(-303), None)


# --- Missing entries


def test_missing_entry_means_nothing_to_a_source_that_cannot_tell():
    """A replica of an older release does not have the newer one's entries."""
    assert place(rows={"newer": row(-3)}).operations == []


@pytest.mark.parametrize("certain", [False, True])
def test_missing_entry_is_absent_only_if_the_store_was_read_in_this_term(certain):
    done = place(rows={"e": row(-3)}, absence=Absence(certain))
    assert [operation.row.verdict for operation in done.operations] == [Verdict.ABSENT] * certain
    assert done.awaits_read is not certain


def test_absent_row_is_kept_for_days_and_then_deleted():
    assert place(rows={"e": absent(-60)}, absence=CERTAIN).operations == []
    (deleted,) = place(rows={"e": absent(-KEEP_ABSENT.total_seconds() - 7200)}, absence=CERTAIN).operations
    assert deleted.operation.row == ""
