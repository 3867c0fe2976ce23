"""Small cut of the benchmarks, with bounds far below the ratios on a quiet machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.benchmarks import burst, scale
from tests.benchmarks.results import OURS, STOCK, Result, page


def _sides(results: list[Result]) -> dict[str, Result]:
    return {result.side: result for result in results}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_thousand_entries_due_at_once_are_enqueued_faster_than_by_stock(figure: Callable[[str], None]) -> None:
    """Other load may slow down either run, so the bound is on processor time."""
    found = burst.benchmark([1000], show=figure)
    sides = _sides(found.results)
    assert sides[OURS].seconds(burst.PROCESSOR) * 3 < sides[STOCK].seconds(burst.PROCESSOR)
    assert sides[OURS].seconds(burst.LAST) < sides[STOCK].seconds(burst.LAST)
    assert OURS in page([found])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_large_schedule_costs_no_more_than_with_stock(figure: Callable[[str], None]) -> None:
    """Bounds leave room for a busy machine: stock spends its time in proportion to the number of entries."""
    sides = _sides(scale.benchmark([5000], show=figure).results)
    ours, stock = sides[OURS].seconds, sides[STOCK].seconds
    assert ours(scale.STANDBY) < stock(scale.LEADER)
    assert ours(scale.LEADER) < stock(scale.LEADER)
    assert ours(scale.START) < 3 * stock(scale.START)
