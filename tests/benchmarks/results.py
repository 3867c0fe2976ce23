"""Result of a benchmark, and its table in a terminal and in Markdown."""

import argparse
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Names of the sides of a comparison.
OURS, STOCK, REDBEAT, FLOOR = "ha_beat", "plain beat", "redbeat", "floor"

_EXPLANATION = """\
Both sides of a ratio were measured in one run, one after the other. The floor is a pipeline of redis-py that pushes the
same messages, ready made. Processor time is that of all replicas: three of ha_beat, one of each other scheduler."""

_PACKAGES = ("ha-beat", "celery", "kombu", "redis", "celery-redbeat", "Django", "django-celery-beat")


@dataclass(frozen=True)
class Unfinished:
    """Measure of a run that was stopped after ``seconds``, with ``done`` of ``size`` messages sent."""

    seconds: float
    done: int
    size: int

    def __str__(self) -> str:
        return f"not done after {self.seconds:.0f} s: {self.done:,} of {self.size:,}"


Measure = float | Unfinished


@dataclass(frozen=True)
class Result:
    """Measures of one side at one size; ``measures`` maps a column to seconds, a share of a core, or a count."""

    side: str
    size: int
    measures: Mapping[str, Measure]

    def seconds(self, column: str) -> float:
        """Return a measure. For a run that was stopped, return the time until the stop."""
        value = self.measures[column]
        return value.seconds if isinstance(value, Unfinished) else value


@dataclass
class Benchmark:
    """Results of one benchmark. Ratios compare only results that were measured in the same run."""

    title: str
    words: Sequence[object]
    unit: str
    columns: Sequence[str]
    results: list[Result] = field(default_factory=list)

    @property
    def command(self) -> str:
        """Return the command that runs this benchmark. `words` are its module and arguments."""
        return " ".join(["python -m", f"tests.benchmarks.{self.words[0]}", *map(str, self.words[1:])])

    def rows(self) -> list[list[str]]:
        """Return the cells, with the ratio of each other side to ours, or of ours to the floor, below its row."""
        found: list[list[str]] = []
        for result in self.results:
            found.append([f"{result.size:,}", result.side, *(shown(result.measures.get(c)) for c in self.columns)])
            ours = self._ours(result.size)
            if ours and result.side != OURS:
                sides = (ours, result) if result.side == FLOOR else (result, ours)
                ratios = [_ratio(*(side.measures.get(c) for side in sides)) for c in self.columns]
                found.append(["", " / ".join(side.side for side in sides), *ratios])
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


def arguments(doc: str | None, unit: str = "entries", size: int = 1000) -> argparse.ArgumentParser:
    """Return a parser for the sizes of a benchmark, in number of `unit`. `doc` is the docstring of its module."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", metavar=unit, nargs="*", type=int, default=[size], help=f"default: {size}")
    return parser


def shown(value: Measure | None) -> str:
    """Return a measure with about three digits, or a dash if there is none."""
    if value is None or isinstance(value, Unfinished):
        return "-" if value is None else str(value)
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def machine() -> str:
    """Return one line on the machine and the versions that were measured."""
    packages = ", ".join(filter(None, map(_package, _PACKAGES)))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {processor()}, {cores} cores, {platform.system()} "
        f"{platform.release()}, load {os.getloadavg()[2]:.1f} in the 15 minutes before the end, "
        f"Python {platform.python_version()}, {packages}"
    )


def _package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def page(benchmarks: Iterable[Benchmark]) -> str:
    """Return the page of all results."""
    head = ["# Benchmarks", "", f"Written by `python -m tests.benchmarks`. {machine()}.", "", _EXPLANATION]
    return "\n".join([*head, *(f"\n{benchmark.markdown()}" for benchmark in benchmarks)]) + "\n"


def _ratio(one: Measure | None, other: Measure | None) -> str:
    if one is None or not other or isinstance(other, Unfinished):
        return "-"
    return f"> {one.seconds / other:.3g}x" if isinstance(one, Unfinished) else f"{one / other:.3g}x"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        row[0].rjust(widths[0]),
        row[1].ljust(widths[1]),
        *(c.rjust(w) for c, w in zip(row[2:], widths[2:], strict=True)),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
