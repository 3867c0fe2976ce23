"""The checker finds every class of defect in hand-written histories, and none in good ones."""

from collections import Counter
from collections.abc import Sequence
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
    StockTask,
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


def test_good_history_passes():
    """It contains a fault and a change of epoch; the report counts both."""
    history = [*GOOD[:3], {"t": 1002.5, "type": "fault", "fault": "kill_leader", "phase": "at"}, *GOOD[3:]]
    report = check(history, [SECONDS])
    assert report.ok, str(report)
    assert (report.messages, report.entries, report.occurrences, report.changes_of_epoch) == (5, 1, 5, 1)
    assert report.faults == {"kill_leader": 1}
    assert "faults: 1 kill_leader" in str(report)
    assert report.summary == "5 occurrences, 0 duplicates, 0 missing, skipped: none; 1 changes of leader"


def case(name: str, history: list[Event], *expected: Expectation, skipped: Sequence[Skipped] = (), **found: int) -> Any:
    """Return a case: the history, expectations, recorded verdicts, and how often each kind of problem is found."""
    return pytest.param(history, expected, skipped, {kind.replace("_", " "): n for kind, n in found.items()}, id=name)


def again(second: float, **changes: Any) -> list[Event]:
    """Return the good history and a late second message of another leader."""
    return [*GOOD, message(second, **{"epoch": 2, "t": 1004.5, **changes})]


GAP = every_second(0, 1, 4)
MINUTES = every_second(0, 60, 180)
COALESCED = Skipped("e", at(11), at(15), "coalesced", count=5)
ADJACENT = [COALESCED, Skipped("e", at(16), at(18)), Skipped("f", at(12), at(13))]
NAMESAKES = [message(0), message(0, entry="f"), message(0, cluster="d", id="other")]
STALE_LATER = [message(0, epoch=1), message(1, epoch=2), message(2, epoch=2), message(3, epoch=1)]


@pytest.mark.parametrize(
    ("history", "expected", "skipped", "found"),
    [
        case("duplicate: same occurrence, other id", again(2, id="another"), duplicate=1, out_of_order=1),
        case("duplicate: same message", again(2), duplicate=1, duplicate_id=1, out_of_order=1),
        case(
            "duplicate: other spelling",
            again(2, id="another", scheduled_at="2030-01-01T13:00:02+01:00"),
            duplicate=1,
            out_of_order=1,
        ),
        case("duplicate: other occurrence, same id", again(5, id="e@2030-01-01T12:00:02+00:00"), duplicate_id=1),
        case("same instant of another entry or cluster", NAMESAKES),
        case("epoch falls some messages later", STALE_LATER, epoch_fell=1),
        case("epochs are compared per entry", [message(0, epoch=2), message(0, entry="f", epoch=1)]),
        case("no epoch", [message(0), message(1, epoch=None)], no_epoch=1),
        case("arrival out of order", every_second(0, 2, 1, 3), out_of_order=1),
        case("missing intervals", GAP, SECONDS, missing=2),
        case("gap with verdicts", GAP, SECONDS, skipped=[Skipped("e", at(2), at(3))]),
        case("gap half covered", GAP, SECONDS, skipped=[Skipped("e", at(2), at(2))], missing=1),
        case("gap with verdicts of another entry", GAP, SECONDS, skipped=[Skipped("f", at(2), at(3))], missing=2),
        case("early step", every_second(0, 1, 1.4, 2.4), SECONDS, off_the_grid=1),
        case("late step", every_second(0, 1, 2.2), SECONDS, missing=1, off_the_grid=1),
        case(
            "new grid after a covered gap", every_second(0, 1, 3.4, 4.4), SECONDS, skipped=[Skipped("e", at(2), at(3))]
        ),
        case("no message", [], SECONDS, missing=1),
        case("whole run", GOOD, Interval("e", 1.0, until=at(4.5))),
        case("early end", GOOD, Interval("e", 1.0, until=at(7.5)), missing=3),
        case("early end, covered", GOOD, Interval("e", 1.0, until=at(7.5)), skipped=[Skipped("e", at(5), at(7))]),
        case("missing minute", MINUTES, EveryMinute("e"), missing=1),
        case("missing minute, covered", MINUTES, EveryMinute("e"), skipped=[Skipped("e", at(120), at(120))]),
        case("early end of minutes", every_second(0, 60), EveryMinute("e", since=at(-30), until=at(130)), missing=1),
        case("no minute", [], EveryMinute("e", since=at(0), until=at(60)), missing=2),
        case("half a minute", every_second(0, 60, 90), EveryMinute("e"), off_the_grid=1),
        case("occurrence that was never due", every_second(0, 60), Instants("e", (at(0),)), unexpected=1),
        case("occurrence that is missing", every_second(0), Instants("e", (at(0), at(60))), missing=1),
        case("message and skip", GOOD, skipped=[Skipped("e", at(1), at(1), "misfire")], two_verdicts=1),
        case("message of an uncertain occurrence", GOOD, skipped=[Skipped("e", at(1), at(1), "", "uncertain")]),
        case("skipped twice", GOOD, skipped=[COALESCED, Skipped("e", at(14), at(16), "missed")], two_verdicts=1),
        case("adjacent skips, and of another entry", GOOD, skipped=ADJACENT),
    ],
)
def test_problems_are_found(history: list[Event], expected: Any, skipped: Any, found: dict[str, int]):
    assert Counter(problem.kind for problem in check(history, expected, skipped).problems) == found


def test_report_names_missing_instants_and_counts_skips():
    report = check(GAP, [SECONDS], [COALESCED, Skipped("e", at(16), at(17), "missed", count=2)])
    assert report.skipped == {"coalesced": 5, "missed": 2}
    assert "12:00:02" in str(report)
    assert "12:00:03" in str(report)


def test_run_count_that_repeats_or_jumps_is_found():
    counted = [message(second, run_count=count) for second, count in enumerate((5, 6, 6, 7, 9, 8))]
    assert [problem.detail.partition(": ")[2] for problem in run_count_breaks(counted)] == [
        "run 6 after run 6",
        "run 9 after run 7",
        "run 8 after run 9",
    ]
    assert run_count_breaks([message(0, run_count=5), message(0.5, entry="f", run_count=1)]) == []


def test_stock_messages_are_counted_against_the_time_they_span():
    """Without the header there is no occurrence to name, but three beats send three times the messages."""

    def stock(beats: int) -> list[Event]:
        bare = {"entry": None, "scheduled_at": None, "epoch": None}
        sent = [(second + beat / 7, beat) for second in range(10) for beat in range(beats)]
        return [message(when, **bare, id=f"{when} {beat}") for when, beat in sent]

    expected = StockTask("tick", 1.0)
    assert check(stock(1), [expected]).ok
    assert check(stock(3), [expected]).duplicates == 1
    assert check([], [expected]).missing == 1


def test_single_and_ranged_verdicts_of_the_journal_are_read():
    iso = NOON.isoformat()
    skipped = skipped_from_journal(
        [
            {"verdict": "enqueued", "entry": "e", "at": iso},
            {"verdict": "skipped", "entry": "e", "at": "2030-01-01T13:00:00+01:00", "why": "misfire"},
            {"verdict": "skipped", "entry": "g", "from": iso, "until": at(3).isoformat(), "count": 3},
            {"verdict": "uncertain", "entry": "f", "at": iso},
            {"event": "led", "epoch": 3},
        ]
    )
    assert skipped == [
        Skipped("e", NOON, NOON, "misfire"),
        Skipped("g", NOON, at(3) - timedelta(microseconds=1), count=3),
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
    history = [message(second, entry=f"e{n}") for second in range(100) for n in range(100)]
    assert check(history, [Interval(f"e{n}", 1.0) for n in range(100)]).ok
