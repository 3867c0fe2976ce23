"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

#: ``--json``, as the argument ``as_json``.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def timeout_option(default: float = 15.0, note: str = "") -> Callable[[Any], Any]:
    """Return ``--timeout``: seconds to wait for the leader's answer. ``note`` is appended to its help."""
    return click.option(
        "--timeout",
        type=click.FloatRange(0.1, 600),
        default=default,
        show_default=True,
        help=f"Seconds to wait for the leader's answer{note}.",
    )
