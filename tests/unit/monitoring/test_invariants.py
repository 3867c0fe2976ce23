"""Invariants, on records written by hand."""

import json
from typing import Any

import pytest

from ha_beat.monitoring.invariants import ClusterState, Invariants, Violation
from ha_beat.reasons import Invariant
from ha_beat.store.journal import Record, parse
from tests.support.events import EventLog


def record(n: int, **data: Any) -> Record:
    return parse(f"{1000 + n}-0", n, json.dumps(data))


def enqueued(n: int, epoch: int = 5, by: str = "a", **more: Any) -> Record:
    at = more.pop("at", "2026-01-01T00:00:00.000000+00:00")
    return record(n, verdict="enqueued", entry="e", at=at, epoch=epoch, by=by, id="t", **more)


def watch() -> tuple[Invariants, EventLog]:
    said = EventLog()
    return Invariants(said.append), said


@pytest.mark.parametrize("second", [{"at": "2026-01-01T00:01:00+00:00"}, {"kind": "manual"}], ids=["next", "manual"])
def test_sound_history_breaks_no_invariant(second):
    """A manual run is not a second verdict."""
    over, said = watch()
    assert over.check(ClusterState(5, 5, 2, "g"), [enqueued(1), enqueued(2, **second)]) == ()
    assert said == []


def test_two_enqueued_verdicts_of_an_occurrence_are_reported_once():
    over, said = watch()
    over.check(ClusterState(5, 5, 1, "g"), [enqueued(1)])
    over.check(ClusterState(6, 6, 2, "g"), [enqueued(2, epoch=6, by="b")])
    (violation,) = over.check(ClusterState(6, 6, 2, "g"))
    assert violation.rule == Invariant.TWO_VERDICTS
    assert len(said) == 1


def test_lower_epoch_is_a_breach_until_it_is_higher_again():
    over, said = watch()
    over.check(ClusterState(lease_epoch=9, ledger_epoch=9))
    assert [b.rule for b in over.check(ClusterState(lease_epoch=8, ledger_epoch=8))] == [Invariant.EPOCH_FELL]
    assert over.check(ClusterState(lease_epoch=10, ledger_epoch=10)) == ()
    assert len(said) == 1


def test_lease_behind_its_ledger_is_a_breach():
    over, _ = watch()
    assert [b.subject for b in over.check(ClusterState(lease_epoch=8, ledger_epoch=9))] == ["lease"]


def test_ledger_behind_the_journal_is_a_breach_unless_it_is_new():
    over, _ = watch()
    violations = over.check(ClusterState(5, 5, journal_counter=3, gen="g"), [enqueued(7)])
    assert [b.rule for b in violations] == [Invariant.LEDGER_BEHIND_JOURNAL]
    assert over.check(ClusterState(6, 6, journal_counter=1, gen="h")) == ()


def test_overdue_entry_is_a_breach_unless_the_cluster_is_paused():
    over, said = watch()
    late = (("e", 90.0), ("f", 5.0))
    assert over.check(ClusterState(overdue=late)) == (
        Violation(Invariant.OVERDUE, "e", "due for 90 s, and neither enqueued nor skipped"),
    )
    assert over.check(ClusterState(overdue=late, paused=True)) == ()
    over.check(ClusterState(overdue=late))
    assert len(said) == 2
