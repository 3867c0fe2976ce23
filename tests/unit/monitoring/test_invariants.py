"""Invariants, on records written by hand."""

import json
from typing import Any

import pytest

from ha_beat.monitoring.invariants import ClusterState, Invariants
from ha_beat.reasons import Invariant
from ha_beat.store.journal import Record, parse
from tests.support.events import EventLog


@pytest.fixture
def reported() -> EventLog:
    return EventLog()


@pytest.fixture
def invariants(reported: EventLog) -> Invariants:
    return Invariants(reported.append)


def enqueued(n: int, epoch: int = 5, by: str = "a", **more: Any) -> Record:
    data = {"verdict": "enqueued", "entry": "e", "at": "2026-01-01T00:00:00.000000+00:00", "id": "t", **more}
    return parse(f"{1000 + n}-0", n, json.dumps({**data, "epoch": epoch, "by": by}))


@pytest.mark.parametrize("second", [{"at": "2026-01-01T00:01:00+00:00"}, {"kind": "manual"}], ids=["next", "manual"])
def test_sound_history_breaks_no_invariant(invariants, reported, second):
    """A manual run is not a second verdict."""
    assert invariants.check(ClusterState(5, 5, 2, "g"), [enqueued(1), enqueued(2, **second)]) == ()
    assert reported == []


def test_two_enqueued_verdicts_of_an_occurrence_are_reported_once(invariants, reported):
    invariants.check(ClusterState(5, 5, 1, "g"), [enqueued(1)])
    invariants.check(ClusterState(6, 6, 2, "g"), [enqueued(2, epoch=6, by="b")])
    (violation,) = invariants.check(ClusterState(6, 6, 2, "g"))
    assert (violation.rule, len(reported)) == (Invariant.TWO_VERDICTS, 1)


@pytest.mark.parametrize(
    ("states", "broken"),
    [
        pytest.param(
            [ClusterState(9, 9), ClusterState(8, 8), ClusterState(10, 10)],
            [(), ((Invariant.EPOCH_FELL, "lease"),), ()],
            id="lower epoch, until it is higher again",
        ),
        pytest.param([ClusterState(8, 9)], [((Invariant.EPOCH_FELL, "lease"),)], id="lease behind its ledger"),
        pytest.param(
            [ClusterState(overdue=(("e", 90.0), ("f", 5.0)), paused=paused) for paused in (False, True, False)],
            [((Invariant.OVERDUE, "e"),), (), ((Invariant.OVERDUE, "e"),)],
            id="overdue entry, unless the cluster is paused",
        ),
    ],
)
def test_breach_is_reported_each_time_that_it_begins(invariants, reported, states, broken):
    found = [tuple((each.rule, each.subject) for each in invariants.check(state)) for state in states]
    assert found == broken
    assert len(reported) == sum(map(bool, broken))


def test_ledger_behind_the_journal_is_a_breach_unless_it_is_new(invariants):
    violations = invariants.check(ClusterState(5, 5, journal_counter=3, gen="g"), [enqueued(7)])
    assert [each.rule for each in violations] == [Invariant.LEDGER_BEHIND_JOURNAL]
    assert invariants.check(ClusterState(6, 6, journal_counter=1, gen="h")) == ()
