"""Output of the commands: tables, fields and JSON, fitted to a terminal."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from ha_beat.store.stored_values import text_in

#: Least width of the last column of a table, in characters.
_NARROWEST = 24


def to_terminal() -> bool:
    return sys.stdout.isatty()


def show_json(value: Any) -> None:
    """Print JSON, indented on a terminal."""
    click.echo(json.dumps(value, indent=2 if to_terminal() else None, default=str))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, spare: Sequence[str] = ()) -> None:
    """Print rows under their columns.

    If the terminal is too narrow, the ``spare`` columns are left out one by one, and the last column is wrapped. A
    pipe gets every column, one line per row.
    """
    table = [list(columns), *([_in_one_line(value) for value in row] for row in rows)]
    if not to_terminal():
        widths = _widths(table)
        for row in table:
            click.echo(_beside(row, widths).rstrip())
        return
    room, left_out = shutil.get_terminal_size().columns, []
    for name in spare:
        *others, last = _widths(table)
        if sum(others) + 2 * len(others) + min(last, _NARROWEST) <= room:
            break
        number = table[0].index(name)
        left_out.append(name)
        table = [[*row[:number], *row[number + 1 :]] for row in table]
    widths = _widths(table)
    for number, row in enumerate(table):
        for line in _broken(row, widths, room):
            click.echo(click.style(line, bold=True) if number == 0 else line)
    if left_out:
        click.echo(click.style(f"(no room for {', '.join(left_out)}; use --json or a pipe for all columns)", dim=True))


def _in_one_line(value: object) -> str:
    return " ".join(text_in(value).split())


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[number]) for row in table) for number in range(len(table[0]))]


def _beside(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True))


def _broken(row: Sequence[str], widths: Sequence[int], room: int) -> list[str]:
    """Return the lines of a row. The last column is beside the others if there is room, else below them."""
    before = _beside(row[:-1], widths[:-1]) + "  " * (len(row) > 1)
    if len(before) + len(row[-1]) <= room:
        return [f"{before}{row[-1]}".rstrip()]
    beside = room - len(before) >= _NARROWEST
    indent = len(before) if beside else 4
    parts = [" " * indent + part for part in textwrap.wrap(row[-1], max(room - indent, 1), break_long_words=False)]
    return [before + parts[0].lstrip(), *parts[1:]] if beside else [before.rstrip(), *parts]


def show_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print one name and value per line."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        show_hanging(click.style(name.ljust(width), bold=True), str(value))


def show_hanging(mark: str, text: str) -> None:
    """Print a text after its mark. On a terminal, a long text is wrapped and indented."""
    indent, text = len(click.unstyle(mark)) + 2, text_in(text)
    room = shutil.get_terminal_size().columns - indent
    if not to_terminal() or room < _NARROWEST or len(text) <= room:
        click.echo(f"{mark}  {text}")
        return
    first, *more = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    click.echo(f"{mark}  {first}")
    for line in more:
        click.echo(" " * indent + line)


def second(at: datetime | None) -> str:
    """Return an instant in UTC, to the second: ``2026-03-01 03:30:00Z``; ``-`` for none."""
    return f"{at:%Y-%m-%d %H:%M:%S}Z" if at else "-"


def instant(ms: int | None) -> str:
    """Return a time in UTC, to the second. ``ms`` is in ms since the Unix epoch."""
    try:
        return second(datetime.fromtimestamp(ms / 1000, UTC) if ms else None)
    except (ValueError, OverflowError, OSError):
        return "?"
