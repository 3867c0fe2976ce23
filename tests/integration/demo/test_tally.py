"""The demo's tally, on histories written by hand."""

from __future__ import annotations

from itertools import islice

import pytest

from ha_beat.demo.fault_order import fault_order
from ha_beat.demo.observer import instant_us, roles_of, verdict_of
from ha_beat.demo.tally import Fault, FaultKind, Leader, Run, Tally, Verdict

SECOND = 1_000_000
BASE = 1_760_000_000 * SECOND


def at(seconds: float) -> int:
    return BASE + round(seconds * SECOND)


def ran(seconds: float, *, entry: str = "second", epoch: int = 7, late: float = 0.01) -> Run:
    return Run(entry, at(seconds), f"id-{seconds}", epoch, "worker-1", at(seconds + late))


def skipped(first: float, until: float, reason: str = "coalesced", entry: str = "second") -> Verdict:
    return Verdict(entry, "skipped", at(first), at(until), reason, 7, at(until) // 1000)


def enqueued(seconds: float, epoch: int) -> Verdict:
    return Verdict("second", "enqueued", at(seconds), at(seconds) + 1, "", epoch, at(seconds) // 1000)


def tally_of(*runs: Run, skips: tuple[Verdict, ...] = ()) -> Tally:
    tally = Tally({"second": SECOND})
    for skip in skips:
        tally.add_verdict(skip)
    for run in runs:
        tally.add_run(run)
    return tally


def test_history_without_gaps_is_sound():
    counts = tally_of(ran(0), ran(1), ran(2)).counts(tail_us=at(2.5))

    assert counts.sound
    assert (counts.arrived, counts.duplicates, counts.missed, counts.off_grid) == (3, 0, 0, 0)


def test_order_of_arrival_is_irrelevant():
    assert tally_of(ran(2), ran(0), ran(1)).counts().sound


def test_second_run_of_an_occurrence_is_a_duplicate():
    tally = tally_of(ran(0), ran(1))

    assert tally.add_run(ran(1, epoch=8)) is True
    assert tally.counts().duplicates == 1
    assert not tally.counts().sound


def test_three_runs_of_an_occurrence_are_two_duplicates():
    assert tally_of(ran(0), ran(0), ran(0)).counts().duplicates == 2


def test_gap_without_a_verdict_is_missed():
    counts = tally_of(ran(0), ran(1), ran(4)).counts()

    assert counts.missed == 2
    assert not counts.sound


def test_coalesced_gap_is_not_missed():
    counts = tally_of(ran(0), ran(4), skips=(skipped(1, 4),)).counts()

    assert (counts.missed, counts.coalesced) == (0, 3)
    assert counts.sound


def test_skip_covers_only_its_range():
    counts = tally_of(ran(0), ran(5), skips=(skipped(2, 4),)).counts()

    assert (counts.missed, counts.coalesced) == (2, 2)


def test_skip_excludes_the_end_of_its_range():
    """The end is enqueued itself: without a run it is lost."""
    counts = tally_of(ran(0), ran(4), skips=(skipped(1, 3),)).counts()

    assert (counts.missed, counts.coalesced) == (1, 2)


def test_skip_of_another_entry_covers_nothing():
    tally = Tally({"second": SECOND, "other": SECOND})
    tally.add_verdict(skipped(1, 2, entry="other"))
    tally.add_run(ran(0))
    tally.add_run(ran(2))

    assert tally.counts().missed == 1


def test_skip_for_another_reason_is_not_sound():
    counts = tally_of(ran(0), ran(2), skips=(skipped(1, 2, reason="state_loss"),)).counts()

    assert (counts.missed, counts.skipped) == (0, 1)
    assert not counts.sound


def test_enqueued_verdict_without_a_run_is_missed():
    """The message was sent and did not arrive."""
    tally = tally_of(ran(0), ran(2))
    tally.add_verdict(enqueued(1, 7))

    assert tally.counts().missed == 1


def test_gap_at_the_end_is_missed():
    tally = tally_of(ran(0), ran(1))

    assert tally.counts(tail_us=at(4.5)).missed == 3
    assert tally.counts(tail_us=at(1.5)).missed == 0


def test_entry_without_runs_is_missed():
    tally = tally_of()

    assert tally.counts(tail_us=at(3.5), begun_us=at(0)).missed == 3


def test_runs_on_two_grids_are_off_grid():
    """Without a shared ledger, a second beat sends every message again, at other instants."""
    counts = tally_of(ran(0), ran(0.13), ran(1), ran(1.13), ran(2)).counts()

    assert counts.off_grid > 0
    assert not counts.sound


def test_restarted_grid_is_off_grid():
    counts = tally_of(ran(0), ran(1), ran(2.6), ran(3.6)).counts()

    assert counts.off_grid == 1


def test_takeover_is_timed_from_the_fault_and_the_last_message():
    tally = Tally({"second": SECOND})
    tally.add_leader(Leader(7, "beat-1", at(0) // 1000))
    tally.add_verdict(enqueued(1, 7))
    tally.add_fault(Fault(FaultKind.KILL, "beat-1", 7, at(1.5) // 1000))
    assert tally.add_leader(Leader(8, "beat-2", at(1.7) // 1000)) is not None
    tally.add_verdict(enqueued(2, 8))
    tally.add_verdict(enqueued(3, 8))

    (takeover,) = tally.takeovers()
    assert (takeover.before, takeover.replica, takeover.cause) == ("beat-1", "beat-2", FaultKind.KILL)
    assert takeover.led_after_s == pytest.approx(0.2)
    assert takeover.silence_s == pytest.approx(1.0)


def test_change_of_leader_without_a_fault_has_no_cause():
    tally = Tally({"second": SECOND})
    tally.add_leader(Leader(7, "beat-1", 0))
    tally.add_leader(Leader(8, "beat-2", 10))

    (takeover,) = tally.takeovers()
    assert takeover.cause is None
    assert takeover.led_after_s is None


def test_same_leader_seen_again_is_not_a_takeover():
    tally = Tally({"second": SECOND})
    tally.add_leader(Leader(7, "beat-1", 0))

    assert tally.add_leader(Leader(7, "beat-1", 0)) is None
    assert tally.counts().takeovers == 0


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


@pytest.mark.parametrize(
    "written",
    [1_760_000_000_123_457, "1760000000123457", "2025-10-09T08:53:20.123457+00:00"],
)
def test_instant_is_parsed_to_the_microsecond(written):
    assert instant_us(written) == 1_760_000_000_123_457


def test_record_without_a_verdict_is_ignored():
    assert verdict_of("5-0", {"d": '{"event": "leader", "epoch": 3}'}) is None


def test_verdict_on_a_range_is_parsed():
    fields = {"d": '{"entry": "e", "verdict": "skipped", "from": 5, "until": 9, "why": "coalesced", "epoch": 3}'}

    assert verdict_of("77-1", fields) == Verdict("e", "skipped", 5, 9, "coalesced", 3, 77)


def test_newest_record_of_a_pid_has_its_role():
    members = {
        "a": '{"role": "standby", "pid": 5, "seen_ms": 20}',
        "b": '{"role": "leader", "pid": 5, "seen_ms": 10}',
    }

    assert roles_of(members) == {5: "standby"}
