"""Options that several commands share, and the type of those that take an instant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    # Generic only in newer versions of click.
    _InstantType = click.ParamType[datetime]
else:
    _InstantType = click.ParamType

#: ``--json``, as the argument ``as_json``.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def timeout_option(default: float = 15.0, note: str = "") -> Callable[[Any], Any]:
    """Return ``--timeout``: seconds to wait for the leader's answer. ``note`` is appended to its help."""
    seconds = click.FloatRange(0.1, 600)
    words = f"Time to wait for the leader's answer{note}."
    return click.option("--timeout", type=seconds, metavar="SECONDS", default=default, show_default=True, help=words)


class Instant(_InstantType):
    """Date, or date and time, in ISO 8601. UTC unless it has an offset."""

    name = "instant"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(str(value))
            found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a date or time such as 2026-03-01 or 2026-03-01T06:30:00+01:00", param, ctx)
        if not 1971 <= found.year <= 2999:
            self.fail(f"{value!r} is not between the years 1971 and 2999", param, ctx)
        return found


INSTANT = Instant()
