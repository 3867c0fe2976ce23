"""Figures measured by tests, shown at the end of the run, also of passed tests and under xdist."""

from collections.abc import Callable

import pytest

_PROPERTY = "figure"


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that adds a line or a table to the summary."""
    return lambda text: record_property(_PROPERTY, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    shown: list[tuple[str, str]] = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                shown += [(report.nodeid, str(value)) for name, value in report.user_properties if name == _PROPERTY]
    if not shown:
        return
    terminalreporter.section("figures")
    for test, text in shown:
        lines = text.splitlines()
        terminalreporter.write_line(f"{test}: {lines[0]}")
        for line in lines[1:]:
            terminalreporter.write_line(f"    {line}")
