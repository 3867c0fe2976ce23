"""Findings of the checker in the summary of a test run."""

from collections.abc import Callable

import pytest

from tests.faults.checker import Report


@pytest.fixture
def found(figure: Callable[[str], None]) -> Callable[[Report | str], None]:
    """Return a function that adds a report, or a line, to the summary."""
    return lambda what: figure(what.summary if isinstance(what, Report) else what)
