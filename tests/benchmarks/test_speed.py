"""Small benchmarks, with bounds far below the ratios on a quiet machine."""

from collections.abc import Callable

import pytest

from tests.benchmarks import burst, limits, scale
from tests.benchmarks.results import OURS, STOCK, Result, page


def _sides(results: list[Result]) -> dict[str, Result]:
    return {result.side: result for result in results}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_thousand_entries_due_at_once_are_enqueued_faster_than_by_stock(figure: Callable[[str], None]) -> None:
    """Other load may slow down either run, so the bound is on processor time."""
    found = burst.benchmark([1000], redbeat=False)
    figure(found.text())
    sides = _sides(found.results)
    assert sides[OURS].seconds(burst.PROCESSOR) * 3 < sides[STOCK].seconds(burst.PROCESSOR)
    assert sides[OURS].seconds(burst.LAST) < sides[STOCK].seconds(burst.LAST)
    assert OURS in page([found])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_large_schedule_costs_no_more_than_with_stock(figure: Callable[[str], None]) -> None:
    """The bounds leave room for a busy machine: the time of stock beat is proportional to the number of entries."""
    found = scale.benchmark([5000])
    figure(found.text())
    sides = _sides(found.results)
    ours, stock = sides[OURS].seconds, sides[STOCK].seconds
    assert ours(scale.STANDBY) < stock(scale.LEADER)
    assert ours(scale.LEADER) < stock(scale.LEADER)
    assert ours(scale.START) < 3 * stock(scale.START)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_burst_delays_neither_renewals_nor_another_entry_nor_redis(figure: Callable[[str], None]) -> None:
    """The bounds leave room for a busy machine. The table shows the aims beside the figures.

    The bounds rise with the figures before the burst and with its duration. An entry that waits for the end of the
    burst is late by more than half of its duration. A lease lasts for four intervals, so that a renewal which is late
    by two endangers it. The mean of the scripts hardly depends on a single one that the machine interrupts.
    """
    found = limits.benchmark([5000])
    figure(found.text())
    before, during, aim = (result.seconds for result in found.results)
    assert during(limits.RENEWAL) < before(limits.RENEWAL) + 200
    assert during(limits.LATE) < before(limits.LATE) + during(limits.LASTED) / 2 + 0.2
    assert during(limits.MEAN) < aim(limits.MEAN)
