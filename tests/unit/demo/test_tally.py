"""The demo's tally, on histories written by hand."""

from itertools import islice

import pytest

from ha_beat.clock import from_micros
from ha_beat.demo.cluster_state import roles_of
from ha_beat.demo.fault_injector import fault_order
from ha_beat.demo.tally import Fault, FaultKind, Leader, Run, Tally
from ha_beat.reasons import Verdict
from ha_beat.store.journal import VerdictRecord

SECOND = 1_000_000
BASE = 1_760_000_000 * SECOND


def at(seconds: float) -> int:
    return BASE + round(seconds * SECOND)


def ran(seconds: float, epoch: int = 7) -> Run:
    return Run("second", at(seconds), f"id-{seconds}", epoch, "worker-1", at(seconds + 0.01))


def record(verdict: Verdict, entry: str, first_us: int, until_us: int, epoch: int, reason: str = "") -> VerdictRecord:
    instants = {"first": from_micros(first_us), "until": from_micros(until_us), "count": 1}
    known = {"id": "1-0", "n": 1, "kind": "occurrence", "by": "beat-1", "data": {}}
    return VerdictRecord(
        **known, **instants, ms=until_us // 1000, verdict=verdict, entry=entry, epoch=epoch, reason=reason
    )


def skipped(first: float, until: float, reason: str = "coalesced", entry: str = "second") -> VerdictRecord:
    return record(Verdict.SKIPPED, entry, at(first), at(until), 7, reason)


def enqueued(seconds: float, epoch: int) -> VerdictRecord:
    return record(Verdict.ENQUEUED, "second", at(seconds), at(seconds) + 1, epoch)


def tally_of(*runs: Run, verdicts: tuple[VerdictRecord, ...] = ()) -> Tally:
    tally = Tally({"second": SECOND, **{verdict.entry: SECOND for verdict in verdicts}})
    for verdict in verdicts:
        tally.add_verdict(verdict)
    for run in runs:
        tally.add_run(run)
    return tally


@pytest.mark.parametrize(
    ("runs", "verdicts", "expected", "sound"),
    [
        pytest.param((0, 1, 2), (), {"arrived": 3}, True, id="history without gaps"),
        pytest.param((2, 0, 1), (), {}, True, id="any order of arrival"),
        pytest.param((0, 1, 1), (), {"duplicates": 1}, False, id="second run of an occurrence"),
        pytest.param((0, 0, 0), (), {"duplicates": 2}, False, id="three runs of an occurrence"),
        pytest.param((0, 1, 4), (), {"missed": 2}, False, id="gap without a verdict"),
        pytest.param((0, 4), (skipped(1, 4),), {"coalesced": 3}, True, id="coalesced gap"),
        pytest.param((0, 5), (skipped(2, 4),), {"missed": 2, "coalesced": 2}, False, id="skip covers only its range"),
        # The end of a range is enqueued itself: without a run it is lost.
        pytest.param((0, 4), (skipped(1, 3),), {"missed": 1, "coalesced": 2}, False, id="skip excludes its end"),
        pytest.param((0, 2), (skipped(1, 2, entry="other"),), {"missed": 1}, False, id="skip of another entry"),
        pytest.param((0, 2), (skipped(1, 2, "state_loss"),), {"skipped": 1}, False, id="skip for another reason"),
        # The message was sent and did not arrive.
        pytest.param((0, 2), (enqueued(1, 7),), {"missed": 1}, False, id="enqueued verdict without a run"),
        # Without a shared ledger, a second beat sends every message again, at other instants.
        pytest.param((0, 0.13, 1, 1.13, 2), (), {"off_grid": 4}, False, id="runs on two grids"),
        pytest.param((0, 1, 2.6, 3.6), (), {"off_grid": 1, "missed": 1}, False, id="restarted grid"),
    ],
)
def test_history_is_counted(runs, verdicts, expected, sound):
    counts = tally_of(*map(ran, runs), verdicts=verdicts).counts()
    none = {"duplicates": 0, "missed": 0, "coalesced": 0, "skipped": 0, "off_grid": 0}
    assert {name: getattr(counts, name) for name in none | expected} == none | expected
    assert counts.sound is sound


def test_run_under_a_later_epoch_is_reported_as_a_duplicate():
    assert tally_of(ran(1)).add_run(ran(1, epoch=8)) is True


def test_gap_at_the_end_is_missed():
    tally = tally_of(ran(0), ran(1))
    assert [tally.counts(until_us=at(tail)).missed for tail in (4.5, 1.5)] == [3, 0]
    assert tally_of().counts(until_us=at(3.5), since_us=at(0)).missed == 3


def test_takeover_is_timed_from_the_fault_and_the_last_message():
    tally = Tally({"second": SECOND})
    tally.add_leader(Leader(7, "beat-1", at(0) // 1000))
    tally.add_verdict(enqueued(1, 7))
    tally.add_fault(Fault(FaultKind.KILL, "beat-1", 7, at(1.5) // 1000))
    tally.add_leader(Leader(8, "beat-2", at(1.7) // 1000))
    tally.add_verdict(enqueued(2, 8))
    tally.add_verdict(enqueued(3, 8))
    (takeover,) = tally.takeovers()
    assert (takeover.before, takeover.replica, takeover.cause) == ("beat-1", "beat-2", FaultKind.KILL)
    assert takeover.led_after_s == pytest.approx(0.2)
    assert takeover.silence_s == pytest.approx(1.0)


def test_change_of_leader_without_a_fault_has_no_cause():
    tally = Tally({"second": SECOND})
    tally.add_leader(Leader(7, "beat-1", 0))
    tally.add_leader(Leader(7, "beat-1", 0))
    assert tally.counts().takeovers == 0
    tally.add_leader(Leader(8, "beat-2", 10))
    (takeover,) = tally.takeovers()
    assert (takeover.cause, takeover.led_after_s) == (None, None)


def test_fault_of_an_earlier_term_is_not_the_cause_of_a_later_change():
    tally = Tally({"second": SECOND})
    tally.add_leader(Leader(7, "beat-1", 0))
    tally.add_fault(Fault(FaultKind.STOP, "beat-1", 7, 5))
    tally.add_leader(Leader(8, "beat-2", 10))
    tally.add_leader(Leader(9, "beat-3", 20))
    assert [takeover.cause for takeover in tally.takeovers()] == [FaultKind.STOP, None]


def test_seed_repeats_the_faults_and_the_first_three_differ():
    faults = list(islice(fault_order(5), 30))
    assert faults == list(islice(fault_order(5), 30))
    assert faults != list(islice(fault_order(6), 30))
    assert {kind for kind, _ in faults[:3]} == set(FaultKind)


def test_newest_record_of_a_pid_has_its_role():
    roles = {"a": '{"role": "standby", "pid": 5, "seen_ms": 20}', "b": '{"role": "leader", "pid": 5, "seen_ms": 10}'}
    assert roles_of(roles) == {5: "standby"}
