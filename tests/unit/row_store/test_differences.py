"""When the rows are compared with the known ones, and at what cost."""

from typing import Any

import pytest

from ha_beat.row_store.differences import Comparison
from tests.support.clocks import SteppedClock


class Rows:
    """Primary keys in a database whose passes take ``seconds``."""

    def __init__(self, keys: set[int], seconds: float = 0.0) -> None:
        self.keys, self.seconds, self.clock = keys, seconds, SteppedClock()
        self.passes = 0.0
        self.comparison = Comparison(self, self.clock)  # type: ignore[arg-type]  # the others are not called

    def totals(self, first: Any, until: Any) -> tuple[int, int]:
        found = self.ids(first, until)
        self.passes += len(found) / max(len(self.keys), 1)
        self.clock.ahead += self.seconds
        return len(found), sum(found)

    def ids(self, first: Any, until: Any) -> set[int]:
        return {pk for pk in self.keys if (first is None or pk >= first) and (until is None or pk < until)}

    def seconds_until_due(self) -> float:
        began = self.clock.ahead
        while not self.comparison.due:
            self.clock.ahead += 0.05
        return self.clock.ahead - began


def test_differences_are_found_in_two_passes():
    """The totals of the upper half follow from those of the range and of the lower half."""
    known = range(1, 20_001)
    rows = Rows({*known} - {7, 15_000} | {20_001})
    found = rows.comparison.differences(known, (len(known), sum(known)))
    assert found is not None
    assert (found.unknown, found.absent) == ({20_001}, {7, 15_000})
    assert rows.passes <= 2 + 2  # one more for each further place


@pytest.mark.parametrize(
    ("seconds", "unexplained", "pause"),
    [(0.015, False, 5), (0.1, False, 20), (2, False, 60), (0.015, True, 0.15), (0.3, True, 3)],
    ids=["short", "long", "longest", "unexplained", "long and unexplained"],
)
def test_comparison_takes_a_share_of_the_time(seconds, unexplained, pause):
    rows = Rows({1}, seconds)
    rows.comparison.need(rows.clock.elapsed() + 3, unexplained=False)
    assert rows.seconds_until_due() == 0
    rows.comparison.differences([1], (1, 1))
    rows.comparison.need(rows.clock.elapsed() + 3, unexplained=unexplained)
    assert rows.seconds_until_due() == pytest.approx(pause, abs=0.06)


def test_last_comparison_begins_when_no_more_rows_are_expected():
    rows = Rows({1})
    rows.comparison.need(rows.clock.elapsed() + 3, unexplained=True)
    rows.comparison.differences([1], (1, 1))
    assert rows.seconds_until_due() == pytest.approx(5, abs=0.06)
    rows.comparison.differences([1], (1, 1))
    rows.clock.ahead += 3600
    assert not rows.comparison.due
