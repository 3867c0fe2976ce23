"""Result of a benchmark, and its table in a terminal and in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

#: Names of the two sides of each comparison.
OURS, STOCK, FLOOR = "ha_beat", "plain beat", "floor"


@dataclass(frozen=True)
class Result:
    """Measures of one side at one size; ``measures`` maps a column to seconds, a share of a core, or a count."""

    side: str
    size: int
    measures: dict[str, float]


@dataclass
class Benchmark:
    """Results of one benchmark. Ratios compare only results that were measured in the same run."""

    title: str
    command: str
    unit: str
    columns: Sequence[str]
    results: list[Result] = field(default_factory=list)

    def rows(self) -> list[list[str]]:
        """Return the cells, with the ratio of each other side to ours below its row."""
        found: list[list[str]] = []
        for result in self.results:
            found.append([f"{result.size:,}", result.side, *(shown(result.measures.get(c)) for c in self.columns)])
            ours = self._ours(result.size)
            if ours and result.side != OURS:
                ratios = [_ratio(result.measures.get(c), ours.measures.get(c)) for c in self.columns]
                found.append(["", f"{result.side} / {OURS}", *ratios])
        return found

    def _ours(self, size: int) -> Result | None:
        return next((result for result in self.results if result.side == OURS and result.size == size), None)

    def text(self) -> str:
        """Return the table for a terminal."""
        cells = [[self.unit, "", *self.columns], *self.rows()]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in cells]
        return "\n".join([f"{self.title} ({self.command})", *lines])

    def markdown(self) -> str:
        """Return the table for the documentation."""
        head = [self.unit.capitalize(), "", *self.columns]
        lines = [_line(head), _line(["---:", "---", *["---:"] * len(self.columns)])]
        return "\n".join(
            [f"## {self.title}", "", f"`{self.command}`", "", *lines, *(_line(row) for row in self.rows())]
        )


def shown(value: float | None) -> str:
    """Return a measure with the digits that it is worth; a dash if it was not taken."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def machine() -> str:
    """Return one line on the machine and the versions that were measured."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis", "ha-beat"))
    cores = len(os.sched_getaffinity(0))
    return f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores, Python {platform.python_version()}, {packages}"


def page(benchmarks: Iterable[Benchmark]) -> str:
    """Return the page of all results."""
    head = [
        "# Benchmarks",
        "",
        f"Written by `python -m tests.benchmarks`. {machine()}.",
        "",
        "Both sides of a ratio were measured in one run, one after the other. Above 1, ha_beat needs less.",
    ]
    return "\n".join([*head, *(f"\n{benchmark.markdown()}" for benchmark in benchmarks)]) + "\n"


def _ratio(other: float | None, ours: float | None) -> str:
    return "-" if other is None or not ours else f"{other / ours:.3g}x"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        row[0].rjust(widths[0]),
        row[1].ljust(widths[1]),
        *(c.rjust(w) for c, w in zip(row[2:], widths[2:], strict=True)),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
