"""What the commands print: tables on a terminal, plain lines elsewhere, JSON where asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click


def to_terminal() -> bool:
    return sys.stdout.isatty()


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2 if to_terminal() else None, default=str))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns: by ``rich`` where it is installed and there is a terminal."""
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    if to_terminal():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in texts:
                table.add_row(*(Text(value) for value in row))
            Console().print(table)
            return
    widths = [max(len(row[number]) for row in [list(columns), *texts]) for number in range(len(columns))]
    for row in [list(columns), *texts]:
        click.echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def show_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print name and value, one pair a line."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def instant(ms: int | None) -> str:
    """A time in ms since the Unix epoch, in UTC."""
    if not ms:
        return "-"
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (ValueError, OverflowError, OSError):
        return "?"


def lasting(seconds: float) -> str:
    """A time span in words."""
    seconds = max(seconds, 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
