"""Where a new leader places each entry: from the later of what is known, past what is in doubt, never back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.leader.due_queue import Slot
from ha_beat.leader.ledger_writer import Scribe
from ha_beat.leader.reconcile import Absence, Takeover, take_over
from ha_beat.leader.state_loss import Loss
from ha_beat.reasons import EntryFault, LossKind
from ha_beat.schedule.misfire import MisfireRules
from ha_beat.schedule.occurrence import NEVER
from ha_beat.store.lease import Term
from ha_beat.store.ledger import KEEP_ABSENT, LedgerRow
from ha_beat.store.shadow import Shadow

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
TERM = Term("we", epoch=7, nonce="ours", gen="g", run_id="r", trusted_until=0.0)


class EveryTen:
    """Every ten seconds, counted from the last."""

    def next_after(self, instant: datetime) -> datetime:
        return instant + timedelta(seconds=10)

    def newest(self, known: datetime, now: datetime) -> tuple[datetime, int]:
        count = (now - known) // timedelta(seconds=10)
        return known + count * timedelta(seconds=10), count


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def slot(base: datetime = NEVER, signature: str = "s", *, asked: bool = False) -> Slot:
    return Slot("e", object(), None if asked else EveryTen(), MisfireRules(), signature, base)


def row(seconds: float, signature: str = "s") -> str:
    return LedgerRow(at(seconds), "enqueued", at(seconds), rev=3, signature=signature, run_count=4).encoded()


def placed(one: Slot, raw: str | None, **changes: Any) -> Takeover:
    said: list[events.Event] = []
    given: dict[str, Any] = {
        "shadow": Shadow(),
        "loss": None,
        "scribe": Scribe(TERM, NOW),
        "catch_up": False,
        "emit": said.append,
    }
    return take_over([one], {} if raw is None else {"e": raw}, **{**given, **changes})


def knowing(seconds: float) -> Shadow:
    made = Shadow()
    made.learn("e", at(seconds))
    return made


def total(floor: float) -> Loss:
    return Loss(LossKind.LEDGER_LOST, at(floor), total=True)


def test_an_entry_goes_on_from_its_row() -> None:
    taken = placed(slot(), row(-3))
    assert taken.slots[0].base == at(-3)
    assert taken.works == []


def test_a_store_that_is_ahead_of_the_ledger_wins_and_one_behind_does_not() -> None:
    assert placed(slot(at(-1)), row(-3)).slots[0].base == at(-1)
    assert placed(slot(at(-50)), row(-3)).slots[0].base == at(-3)


def test_a_new_entry_is_armed_now() -> None:
    """Whoever leads next counts from the same instant."""
    taken = placed(slot(), None)
    assert taken.slots[0].base == NOW
    assert [work.row.verdict for work in taken.works] == ["armed"]
    assert taken.new == 1


def test_a_new_entry_whose_store_knows_a_run_counts_from_it() -> None:
    assert placed(slot(at(-25)), None).slots[0].base == at(-25)


def test_a_shadow_ahead_of_the_ledger_is_written_back() -> None:
    taken = placed(slot(), row(-13), shadow=knowing(-3))
    assert taken.slots[0].base == at(-3)
    assert [work.row.base for work in taken.works] == [at(-3)]


def test_an_edited_entry_owes_nothing_from_before_the_edit() -> None:
    taken = placed(slot(signature="another"), row(-300))
    assert taken.slots[0].base == NOW
    assert [work.row.verdict for work in taken.works] == ["armed"]


def test_what_an_edited_entry_owed_by_its_old_schedule_gets_its_verdict() -> None:
    """One instant of it is known, by the row; that it is not sent any more is recorded, up to the edit."""
    raw = LedgerRow(at(-300), "enqueued", at(-300), following=at(-60), signature="s", run_count=4).encoded()
    taken = placed(slot(signature="another"), raw)
    (work,) = taken.works
    assert work.due is not None
    skipped = work.due.skipped
    assert skipped is not None
    assert skipped.first == at(-60)
    assert NOW < skipped.until < at(1)
    assert (work.row.verdict, work.row.reason, work.row.base) == ("skipped", "edited", NOW)
    assert work.row.scheduled_at == at(-60)
    assert work.row.following == at(10)


@pytest.mark.parametrize(("stored", "following"), [(NEVER, +60), (at(-30), -60)])
def test_an_edited_entry_that_owed_nothing_is_only_armed(stored: datetime, following: float) -> None:
    """Its old schedule had nothing due yet, or its own store knows that it has run."""
    raw = LedgerRow(at(-300), "enqueued", at(-300), following=at(following), signature="s").encoded()
    assert [work.row.verdict for work in placed(slot(stored, "another"), raw).works] == ["armed"]


def test_after_a_loss_an_edited_entry_is_in_doubt_like_any_other() -> None:
    """Another replica, whose clock is ahead, may have enqueued what its new schedule has next."""
    taken = placed(slot(at(-12), signature="another"), row(-300), loss=total(+12))
    (work,) = taken.works
    assert (work.row.verdict, work.row.reason, work.row.base) == ("skipped", "state_loss", at(+10))


def test_an_edited_entry_is_not_moved_back() -> None:
    assert placed(slot(signature="another"), row(+5)).slots[0].base == at(+5)


def test_a_row_of_newer_software_is_left_alone_and_its_entry_not_run() -> None:
    taken = placed(slot(), '{"v": 99}')
    assert (taken.slots, taken.works) == ([], [])


def test_after_a_loss_what_may_have_been_enqueued_gets_its_verdict() -> None:
    """All instants up to the floor, as one range; the first behind it is due as ever, on the same grid."""
    taken = placed(slot(), None, shadow=knowing(-35), loss=total(+2))
    (work,) = taken.works
    assert work.due is not None
    skipped = work.due.skipped
    assert skipped is not None
    assert (skipped.first, skipped.until, skipped.count, skipped.reason) == (at(-25), at(5), 3, "state_loss")
    assert taken.slots[0].base == at(-5)
    assert '"state_loss"' in work.operation.records[0]


def test_a_row_that_was_lost_is_not_taken_for_an_entry_that_has_appeared() -> None:
    """The snapshot is older than the entry, and others' rows are in it; what it owed has its verdict, or is owed."""
    others = {"another": row(-3)}
    for loss in (total(+2), None):
        taken = take_over(
            [slot()],
            others,
            knowing(-35),
            loss,
            scribe=Scribe(TERM, NOW),
            catch_up=False,
            emit=lambda _: None,
            absence=Absence(certain=True),
        )
        (placed_,) = taken.slots
        assert placed_.base == (at(-5) if loss else at(-35))
        work = next(work for work in taken.works if work.slot is placed_)
        if loss:
            assert work.due is not None
            assert work.due.skipped is not None
            assert work.due.skipped.first == at(-25)


def test_after_a_loss_an_entry_with_nothing_in_doubt_is_only_armed() -> None:
    taken = placed(slot(), None, shadow=knowing(-3), loss=total(+2))
    assert [work.row.verdict for work in taken.works] == ["armed"]
    assert taken.slots[0].base == at(-3)


def test_after_a_loss_a_store_that_lags_does_not_run_its_past_again() -> None:
    """A database's rows are behind by minutes: the floor holds whatever they say."""
    taken = placed(slot(at(-180)), None, loss=total(+2))
    assert taken.slots[0].base == at(0)
    assert [work.row.verdict for work in taken.works] == ["skipped"]


def test_an_entry_that_only_knows_itself_is_asked_from_the_floor_on() -> None:
    taken = placed(slot(at(-180), asked=True), None, loss=total(+2))
    assert taken.slots[0].base == at(+2)


def test_catching_up_skips_nothing() -> None:
    taken = placed(slot(), None, shadow=knowing(-35), loss=total(+2), catch_up=True)
    assert taken.slots[0].base == at(-35)
    assert [work.row.verdict for work in taken.works] == ["armed"]


def test_without_a_store_that_can_tell_entries_that_are_not_there_are_left_alone() -> None:
    """A replica of an older release does not know the newer one's."""
    taken = take_over(
        [], {"newer": row(-3)}, Shadow(), None, scribe=Scribe(TERM, NOW), catch_up=False, emit=lambda _: None
    )
    assert taken.works == []


def test_after_a_loss_an_entry_that_this_release_does_not_have_gets_its_position_back() -> None:
    """Else every later takeover would find the ledger behind, call it a loss, and skip what is due around it."""
    known = knowing(-3)
    known.learn("of another release", at(-60))
    assert known.ahead_of({}, NOW)
    taken = placed(slot(), None, shadow=known, loss=total(+2))
    mended = {work.slot.id: work.row.raw for work in taken.works}
    assert LedgerRow.parse(mended["of another release"]).base == at(-60)  # type: ignore[union-attr]
    assert not known.ahead_of(mended, NOW)


def test_after_a_loss_a_row_that_is_behind_is_mended_once_whether_its_entry_is_gone_or_not() -> None:
    """A store that can tell has it written as absent: one row for it, where it was."""
    known = knowing(-3)
    for certain in (True, False):
        taken = take_over(
            [],
            {"e": row(-13)},
            known,
            total(+2),
            scribe=Scribe(TERM, NOW),
            catch_up=False,
            emit=lambda _: None,
            absence=Absence(certain),
        )
        (work,) = taken.works
        assert (work.row.base, work.row.verdict) == (at(-3), "absent" if certain else "armed")


def of_another_release(raw: str, floor: float, **changes: Any) -> LedgerRow | None:
    """What becomes, after a loss, of the row of an entry that the new leader has not."""
    given: dict[str, Any] = {"scribe": Scribe(TERM, NOW), "catch_up": False, "emit": lambda _: None, **changes}
    taken = take_over([], {"e": raw}, Shadow(), total(floor), **given)
    return taken.works[0].row if taken.works else None


@pytest.mark.parametrize("held_back", [False, True])
def test_what_is_in_doubt_of_another_release_s_entry_stays_so_until_that_one_leads(held_back: bool) -> None:
    """It leads later and finds no loss, but the row says it: no instant up to there is enqueued, on the same grid."""
    absence = Absence(certain=False) if held_back else None
    left = of_another_release(row(-35), +2, absence=absence)
    assert left is not None
    assert (left.base, left.verdict) == (at(-35), "armed")
    (work,) = placed(slot(), left.raw).works
    assert (work.row.verdict, work.row.reason, work.row.base) == ("skipped", "state_loss", at(-5))
    assert work.row.in_doubt_until is None


def test_what_is_not_in_doubt_of_another_release_s_entry_is_left_alone() -> None:
    """It has nothing due until then, or is past it, or gone; or all is to be caught up."""
    not_due = LedgerRow(at(-35), "enqueued", following=at(+60), signature="s").encoded()
    assert of_another_release(not_due, +2) is None
    assert of_another_release(row(+5), +2) is None
    assert of_another_release(LedgerRow(at(-35), "absent", signature="s").encoded(), +2) is None
    assert of_another_release(row(-35), +2, catch_up=True) is None
    assert of_another_release('{"v": 99}', +2) is None


def test_without_a_loss_nothing_is_written_for_entries_of_other_releases() -> None:
    known = knowing(-3)
    assert placed(slot(), row(-3), shadow=known).works == []


def test_an_entry_whose_schedule_raises_after_a_loss_does_not_hold_up_the_others() -> None:
    """A schedule that has no instant any more, or a broken one: it is told by name."""

    class Broken(EveryTen):
        def next_after(self, instant: datetime) -> datetime:
            raise OverflowError("date value out of range")

    said: list[events.Event] = []
    broken = Slot("broken", object(), Broken(), MisfireRules(), "s", NEVER)
    known = knowing(-35)
    known.learn("broken", at(-35))
    taken = take_over(
        [broken, slot()], {}, known, total(+2), scribe=Scribe(TERM, NOW), catch_up=False, emit=said.append
    )
    assert [placed.id for placed in taken.slots] == ["e"]
    assert [event.entry for event in said if isinstance(event, events.EntryFailed)] == ["broken"]


def test_a_store_that_dates_a_run_in_the_future_is_not_believed() -> None:
    """Its clock was wrong; it must not silence the entry until then."""
    assert placed(slot(at(+3600)), None).slots[0].base == NOW
    assert placed(slot(at(+3600)), row(-3)).slots[0].base == at(-3)


def test_a_ledger_that_is_hours_ahead_is_obeyed_and_the_silence_told() -> None:
    """The clocks that agreed were wrong: no second message, and no silence that nobody can explain."""
    said: list[events.Event] = []
    assert placed(slot(), row(+3600), emit=said.append).slots[0].base == at(+3600)
    (told,) = [event for event in said if isinstance(event, events.EntryFailed)]
    assert told.reason is EntryFault.AHEAD_OF_CLOCK
    assert at(+3600).isoformat() in told.detail
    said.clear()
    placed(slot(), row(+1), emit=said.append)
    assert said == []


def absent(seconds: float) -> str:
    """Found gone or disabled so long ago; it had run 4 times."""
    made = LedgerRow(at(seconds), "absent", at(seconds), rev=3, signature="s", run_count=4)
    return replace(made, dispatched_ms=round(at(seconds).timestamp() * 1000)).encoded()


def test_an_entry_that_was_off_owes_nothing_and_counts_its_runs_anew() -> None:
    """It is armed from now, and that is written: whoever leads next counts from the same instant."""
    taken = placed(slot(at(-300)), absent(-3000), absence=Absence(certain=True))
    assert taken.slots[0].base == NOW
    assert taken.slots[0].runs == 0
    assert [work.row.verdict for work in taken.works] == ["armed"]


def test_only_a_store_that_was_asked_under_this_term_tells_that_an_entry_is_gone() -> None:
    """A standby's view of the table may be older than the last leader's."""
    for certain in (False, True):
        taken = gone(row(-3), certain=certain)
        assert [work.row.verdict for work in taken.works] == ["absent"] * certain
        assert taken.held_back is not certain


def test_what_is_gone_is_remembered_for_days_and_then_no_more() -> None:
    """An entry that comes back within them goes on as one that was off."""
    assert gone(absent(-60)).works == []
    (forgotten,) = gone(absent(-KEEP_ABSENT.total_seconds() - 7200)).works
    assert forgotten.operation.row == ""


def gone(raw: str, *, certain: bool = True) -> Takeover:
    """The entry of this row is not in the store."""
    return take_over(
        [],
        {"e": raw},
        Shadow(),
        None,
        scribe=Scribe(TERM, NOW),
        catch_up=False,
        emit=lambda _: None,
        absence=Absence(certain),
    )


def written(ago: float, verdict: Any = "enqueued", signature: str = "s") -> str:
    ms = round(at(-ago).timestamp() * 1000)
    return LedgerRow(at(-ago), verdict, at(-ago), dispatched_ms=ms, signature=signature, run_count=4).encoded()


def test_what_was_off_once_goes_on_from_where_the_leader_of_that_time_left_it() -> None:
    """A standby sees it too; by the time it leads, another may have armed and run it for long."""
    one = replace_slot(slot(), since=at(-60), resumed=True)
    taken = placed(one, written(5), absence=Absence(certain=True))
    assert (taken.works, one.base, one.runs) == ([], at(-5), 4)
    unseen = replace_slot(slot(), since=at(-3), resumed=True)
    taken = placed(unseen, written(5), absence=Absence(certain=True))
    assert len(taken.works) == 1
    assert (unseen.base, unseen.runs) == (NOW, 0)


def test_an_entry_that_was_off_and_got_another_schedule_is_owed_what_it_is_given() -> None:
    """From when on it was given it; with the schedule it had, nothing of the time until now."""
    another = replace_slot(slot(signature="other"), since=at(-20))
    placed(another, written(500, "absent"), absence=Absence(certain=True))
    assert another.base == at(-20)
    same = replace_slot(slot(), since=at(-20))
    placed(same, written(500, "absent"), absence=Absence(certain=True))
    assert same.base == NOW


def replace_slot(one: Slot, **changes: Any) -> Slot:
    for name, value in changes.items():
        setattr(one, name, value)
    return one


def test_of_two_entries_with_one_id_the_second_is_left_out_and_named() -> None:
    """Their class gives them ids of its own, or a schedule has the keys 1 and "1": each would undo the other's row."""
    said: list[events.Event] = []
    first, second = slot(at(-5)), slot(at(-7), "other")
    second.name = "the second"
    taken = take_over([first, second], {}, Shadow(), None, scribe=Scribe(TERM, NOW), catch_up=False, emit=said.append)
    assert taken.slots == [first]
    assert [event.entry for event in said if isinstance(event, events.EntryFailed)] == ["the second"]


def cleared(run_count: int) -> Slot:
    """Its own store says how often it ran, and not when any more."""
    one = slot()
    one.cleared, one.run_count = True, run_count
    one.misfire = MisfireRules(usual_lateness=15)
    return one


def test_what_was_off_while_nobody_led_owes_nothing_of_that_time() -> None:
    """It stays on its grid, and what a change of leader may cost is owed: the store may have been reset as well."""
    taken = placed(cleared(4), row(-303))
    assert taken.slots[0].base == at(-23)
    assert [(work.row.verdict, work.row.base, work.row.run_count) for work in taken.works] == [("armed", at(-23), 4)]
    taken = placed(cleared(4), row(-3))
    assert (taken.slots[0].base, taken.works) == (at(-3), [])


@pytest.mark.parametrize(("verdict", "run_count"), [("armed", 4), ("skipped", 4), ("enqueued", 3)])
def test_a_store_that_is_behind_is_none_that_was_cleared(verdict: Any, run_count: int) -> None:
    """The run was not written yet; or who led when it was on again has armed it, and it has not run since."""
    raw = LedgerRow(at(-303), verdict, at(-303), rev=3, signature="s", run_count=4).encoded()
    taken = placed(cleared(run_count), raw)
    assert (taken.slots[0].base, taken.works) == (at(-303), [])
