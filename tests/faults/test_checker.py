"""The checker finds every class of defect in hand-written histories, and none in good ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.checker import (
    EveryMinute,
    Expectation,
    Instants,
    Interval,
    Silence,
    Skipped,
    check,
    run_count_breaks,
    silence,
    silence_around,
    skipped_from_journal,
)

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

Event = dict[str, Any]


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def message(seconds: float, entry: str = "e", epoch: int = 1, **changes: Any) -> Event:
    """Return the message of the occurrence due `seconds` after noon, which arrives 10 ms late."""
    due = at(seconds)
    return {
        "t": 1000 + seconds + 0.01,
        "type": "message",
        "task": "tick",
        "id": f"{entry}@{due.isoformat()}",
        "entry": entry,
        "scheduled_at": due.isoformat(timespec="microseconds"),
        "epoch": epoch,
        "run_count": int(seconds * 10) + 1,
        "cluster": "c",
        **changes,
    }


def every_second(*seconds: float, **changes: Any) -> list[Event]:
    return [message(second, **changes) for second in seconds]


SECONDS = Interval("e", 1.0)
GOOD = [*every_second(0, 1, 2), *every_second(3, 4, epoch=2)]


def kinds(history: list[Event], *expected: Expectation, skipped: tuple[Skipped, ...] = ()) -> set[str]:
    return {problem.kind for problem in check(history, expected, skipped).problems}


def test_a_good_history_passes():
    """It contains a fault and a change of epoch; the report counts both."""
    history = [*GOOD[:3], {"t": 1002.5, "type": "fault", "fault": "kill_leader", "phase": "at"}, *GOOD[3:]]
    report = check(history, [SECONDS])
    assert report.ok, str(report)
    assert (report.messages, report.entries, report.occurrences, report.changes_of_epoch) == (5, 1, 5, 1)
    assert report.faults == {"kill_leader": 1}
    assert "kill_leader 1" in str(report)
    assert "duplicates" in str(report)


@pytest.mark.parametrize(
    ("second", "kinds_found"),
    [
        pytest.param(message(2, id="another"), {"duplicate"}, id="same occurrence, other id"),
        pytest.param(message(2), {"duplicate", "duplicate id"}, id="same message"),
        pytest.param(
            message(2, id="another", scheduled_at="2030-01-01T13:00:02+01:00"), {"duplicate"}, id="other spelling"
        ),
        pytest.param(message(5, id="e@2030-01-01T12:00:02+00:00"), {"duplicate id"}, id="other occurrence, same id"),
    ],
)
def test_a_duplicate_is_found_however_it_is_written(second: Event, kinds_found: set[str]):
    assert kinds([*GOOD, {**second, "epoch": 2, "t": 1004.5}]) - {"out of order"} == kinds_found


def test_same_instant_of_another_entry_or_cluster_is_no_duplicate():
    history = [message(0), message(0, entry="f"), message(0, cluster="d", id="other")]
    assert kinds(history) == set()


def test_an_epoch_that_falls_is_found():
    """The stale message may arrive some messages later. Epochs are compared per entry."""
    assert kinds([message(0, epoch=1), message(1, epoch=2), message(2, epoch=2), message(3, epoch=1)]) == {"epoch fell"}
    assert kinds([message(0, epoch=2), message(0, entry="f", epoch=1)]) == set()


def test_a_message_without_an_epoch_is_found():
    assert kinds([message(0), message(1, epoch=None)]) == {"no epoch"}  # type: ignore[arg-type]


def test_arrival_out_of_order_is_found():
    assert kinds(every_second(0, 2, 1, 3)) == {"out of order"}


def test_a_run_count_that_stands_still_is_found():
    assert [p.kind for p in run_count_breaks([message(0, run_count=5), message(1, run_count=5)])] == ["run count fell"]
    assert run_count_breaks(GOOD) == []


def test_a_missing_interval_is_found_and_named():
    report = check(every_second(0, 1, 4), [SECONDS])
    assert report.missing == 2
    assert "12:00:02" in str(report)
    assert "12:00:03" in str(report)


def test_a_gap_with_verdicts_is_no_loss():
    """A covered gap passes, a half-covered one misses the rest, and verdicts of another entry do not count."""
    history = every_second(0, 1, 4)
    assert kinds(history, SECONDS, skipped=(Skipped("e", at(2), at(3)),)) == set()
    assert check(history, [SECONDS], [Skipped("e", at(2), at(2))]).missing == 1
    assert check(history, [SECONDS], [Skipped("f", at(2), at(3))]).missing == 2
    assert kinds(history, SECONDS, skipped=(Skipped(None, at(2), at(3)),)) == set()


def test_an_instant_off_the_grid_is_found():
    """A late or early step is a defect unless the tolerance or a covered gap allows it."""
    assert kinds(every_second(0, 1, 1.4, 2.4), SECONDS) == {"off the grid"}
    assert "missing" in kinds(every_second(0, 1, 2.2), SECONDS)
    assert kinds(every_second(0, 1, 2.2), Interval("e", 1.0, tolerance=0.3)) == set()
    assert kinds(every_second(0, 1, 3.4, 4.4), SECONDS, skipped=(Skipped("e", at(2), at(3)),)) == set()


def test_the_ends_of_a_run_are_held_to_the_grid_too():
    """An entry that never began, began late or ended early is missing occurrences although its messages have no gap."""
    assert check([], [SECONDS]).missing == 1
    assert check(GOOD, [Interval("e", 1.0, since=at(-0.5), until=at(4.5))]).ok
    assert check(GOOD, [Interval("e", 1.0, until=at(7.5))]).missing == 3
    assert check(GOOD, [Interval("e", 1.0, since=at(-3.5))]).missing == 3
    assert check(GOOD, [Interval("e", 1.0, until=at(7.5))], [Skipped("e", at(5), at(7))]).ok


def test_a_missing_minute_is_found():
    minutes = every_second(0, 60, 180)
    assert check(minutes, [EveryMinute("e")]).missing == 1
    assert check(minutes, [EveryMinute("e")], [Skipped("e", at(120), at(120))]).ok
    assert check(every_second(0, 60), [EveryMinute("e", since=at(-30), until=at(130))]).missing == 1
    assert check([], [EveryMinute("e", since=at(0), until=at(60))]).missing == 2
    assert kinds([*minutes[:2], message(90)], EveryMinute("e")) == {"off the grid"}


def test_an_occurrence_that_was_never_due_is_found():
    assert kinds(every_second(0, 60), Instants("e", (at(0),))) == {"unexpected"}
    assert kinds(every_second(0), Instants("e", (at(0), at(60)))) == {"missing"}


def test_a_message_that_is_recorded_as_skipped_has_two_verdicts():
    """For an uncertain occurrence it is no defect: its message may have arrived."""
    assert kinds(GOOD, skipped=(Skipped("e", at(1), at(1), "misfire"),)) == {"two verdicts"}
    assert kinds(GOOD, skipped=(Skipped("e", at(1), at(1), "", "uncertain"),)) == set()


def test_an_occurrence_that_is_skipped_twice_has_two_verdicts():
    """Overlapping ranges of one entry are a defect; adjacent ranges and those of other entries are not."""
    first = Skipped("e", at(11), at(15), "coalesced", count=5)
    assert kinds(GOOD, skipped=(first, Skipped("e", at(14), at(16), "missed"))) == {"two verdicts"}
    assert kinds(GOOD, skipped=(first, Skipped("e", at(16), at(18)), Skipped("f", at(12), at(13)))) == set()
    assert check(GOOD, skipped=[first, Skipped("e", at(16), at(17), "missed", count=2)]).skipped == {
        "coalesced": 5,
        "missed": 2,
    }


def test_stock_messages_are_counted_against_the_time_they_span():
    """Without the header there is no occurrence to name, but three beats send three times the messages."""

    def stock(beats: int) -> list[Event]:
        bare = {"entry": None, "scheduled_at": None, "epoch": None}
        sent = [(second + beat / 7, beat) for second in range(10) for beat in range(beats)]
        return [message(when, **bare, id=f"{when} {beat}") for when, beat in sent]  # type: ignore[arg-type]

    expected = Interval("e", 1.0, task="tick")
    assert check(stock(1), [expected]).ok
    assert check(stock(3), [expected]).duplicates == 1
    assert check([], [expected]).missing == 1


def test_the_journal_s_single_and_ranged_verdicts_are_read():
    micros = int(NOON.timestamp() * 1e6)
    skipped = skipped_from_journal(
        [
            {"verdict": "enqueued", "entry": "e", "at": micros},
            {"verdict": "skipped", "entry": "e", "at": micros, "why": "misfire"},
            json.dumps(
                {
                    "verdict": "skipped",
                    "entry": "e",
                    "from": "2030-01-01T12:00:01+00:00",
                    "to": "2030-01-01T13:00:03+01:00",
                }
            ),
            {"verdict": "skipped", "entry": "g", "from": at(1).isoformat(), "until": at(4).isoformat(), "count": 3},
            {"verdict": "uncertain", "entry": "f", "at": str(micros)},
            {"event": "led", "epoch": 3},
        ]
    )
    assert skipped == [
        Skipped("e", NOON, NOON, "misfire"),
        Skipped("e", at(1), at(3)),
        Skipped("g", at(1), at(4) - timedelta(microseconds=1), count=3),
        Skipped("f", NOON, NOON, "", "uncertain"),
    ]


def test_silence_is_measured_between_arrivals_and_around_faults():
    history = [
        *every_second(0, 1, 2),
        {"t": 1002.5, "type": "fault", "fault": "kill_leader", "phase": "start"},
        *every_second(5, 6),
        {"t": 1006.5, "type": "fault", "fault": "kill_leader", "phase": "end"},
        {"t": 1006.9, "type": "fault", "fault": "kill_leader", "phase": "start"},
    ]
    assert silence(history[:3]).longest == pytest.approx(1.0)
    around = silence_around(history, "kill_leader")
    assert around.gaps == 1
    assert around.longest == pytest.approx(3.0)
    assert silence([]).gaps == 0


def test_silence_goes_on_after_a_late_message_of_the_stopped_leader():
    """The message arrives just after the fault. The silence lasts until the next leader's first message."""
    history = [
        *every_second(0, 1, epoch=1),
        {"t": 1001.99, "type": "fault", "fault": "pause_leader", "phase": "start"},
        *every_second(2, epoch=1),
        *every_second(6, 7, epoch=2),
        {"t": 1007.5, "type": "fault", "fault": "redis_pause", "phase": "start"},
        *every_second(9, epoch=2),
        {"t": 1009.5, "type": "fault", "fault": "pause_leader", "phase": "start"},
        *every_second(12, epoch=3),
    ]
    assert silence_around(history, "pause_leader") == Silence(gaps=2, p50=pytest.approx(3.5), longest=pytest.approx(4))
    assert silence_around(history, "redis_pause").longest == pytest.approx(2.0)


def test_many_messages_are_checked_quickly():
    """The checker must not be the slowest part of a long storm."""
    history = [message(second, entry=f"e{n}") for second in range(100) for n in range(100)]
    assert check(history, [Interval(f"e{n}", 1.0) for n in range(100)]).ok
