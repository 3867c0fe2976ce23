"""Turns of the enqueuer: pauses, entries without a recurrence, overlap, and exceptions in a turn."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ha_beat import events
from ha_beat.leader.batches.prepared import PreparedOccurrences
from ha_beat.leader.batches.results import Results
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import EntryFault, SkipReason
from ha_beat.store.entry_pauses import EntryPause
from ha_beat.store.ledger import LedgerRow
from tests.integration.leader.stepped_leader import KEYS, Leader, Source


class AlwaysDue(Source):
    """Source of an entry without a recurrence that is always due, and asked once a minute."""

    asked = 0

    def __init__(self, last_run: float) -> None:
        super().__init__(lambda entry: replace(entry, recurrence=None), e=last_run)

    def ask_if_due(self, *_: Any) -> tuple[bool, float]:
        self.asked += 1
        return True, 60.0


def test_pause_that_was_not_read_under_the_term_skips_nothing(leader: Leader):
    leader.owe("e")
    leader.know_pauses({"e": EntryPause("e", 1)})
    leader.pause.invalidate()
    leader.turn(3)
    assert (leader.idle, leader.messages) == (float("inf"), [])
    assert "skipped" not in [record.get("verdict") for record in leader.records()]
    leader.know_pauses({})
    assert leader.turn(2).messages == ["e"]


def test_entry_without_recurrence_is_not_asked_before_its_position(leader: Leader):
    """After a loss of state its position is ahead, and occurrences before it may have been enqueued."""
    leader.write(LedgerRow(leader.source.now() + timedelta(seconds=5), "armed", signature="s"))
    leader.use(AlwaysDue(1e9))
    assert leader.turn(3).messages == []
    assert leader.turn(1, after=5.1).messages == ["e"]


def test_schedule_that_is_always_due_is_asked_at_its_interval(leader: Leader):
    """As in stock beat, a schedule may ignore the last run, and must not be sent in a tight loop."""
    leader.use(AlwaysDue(3601.0))
    assert leader.turn(4).messages == ["e"]
    assert (leader.source.asked, leader.idle > 50.0) == (1, True)
    assert leader.turn(4, after=61.0).messages == ["e", "e"]
    assert leader.source.asked == 2


def test_source_that_raises_on_a_verdict_does_not_affect_other_entries(leader: Leader, monkeypatch):
    """An example is an entry class without a setter. That entry continues, too."""
    leader.owe("one", "bad", "two")

    def recorded(entry: ScheduledEntry, _: LedgerRow) -> None:
        if entry.id == "bad":
            raise AttributeError("can't set attribute 'last_run_at'")

    monkeypatch.setattr(leader.source, "recorded", recorded)
    leader.turn(5)
    assert leader.turn(5, after=3600.0).messages == ["bad", "bad", "one", "one", "two", "two"]
    assert set(leader.failed()) == {"bad"}


def test_entries_popped_before_an_exception_are_loaded_again(leader: Leader, monkeypatch):
    leader.owe("one", "two").turn(2)
    with monkeypatch.context() as patch:
        patch.delattr(Results, "apply")
        with pytest.raises(AttributeError):
            leader.turn(5, after=3600.0)
    leader.turn(5)
    assert leader.turn(5, after=3600.0).messages == ["one"] * 3 + ["two"] * 3


def test_occurrence_that_overlaps_is_skipped_and_the_next_one_asked_again(leader: Leader):
    leader.use(Source(lambda entry: replace(entry, busy_for=60.0), e=3601.0))
    leader.client.hset(KEYS.busy, "e:e", f"{round(leader.clock.wall() * 1000)} earlier")
    assert leader.turn(4).messages == []
    (skipped,) = leader.events.of(events.OccurrenceSkipped)
    assert (skipped.reason, skipped.count) == (SkipReason.OVERLAP, 1)
    assert [failed.reason for failed in leader.events.of(events.EntryFailed)] == [EntryFault.NO_REPORTS]
    leader.client.delete(KEYS.busy)
    assert leader.turn(2, after=3601).messages == ["e"]
    assert leader.client.hexists(KEYS.busy, "e:e")


def test_preparation_does_not_delay_the_next_entry(leader: Leader, monkeypatch):
    """The next occurrence would be late by that time."""
    leader.use(Source(e=1800.0)).turn(3)
    waits = leader.idle

    def prepare(*_: object) -> bool:
        leader.clock.ahead += 5.0
        return False

    monkeypatch.setattr(PreparedOccurrences, "prepare", prepare)
    leader.turn(1)
    assert leader.idle == pytest.approx(waits - 5.0, abs=0.01)
