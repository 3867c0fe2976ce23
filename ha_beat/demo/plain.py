"""Plain view, for logs and CI."""

from __future__ import annotations

import click

from ha_beat.demo.tally import Run
from ha_beat.demo.view_model import DemoState, clock_time


class PlainView:
    """View with one line per event."""

    def note(self, elapsed_s: float, text: str, *, grave: bool = False) -> None:
        click.echo(f"{elapsed_s:7.2f}  {'!! ' if grave else ''}{text}")

    def ran(self, elapsed_s: float, run: Run, *, duplicate: bool) -> None:
        mark = "!! DUPLICATE " if duplicate else ""
        click.echo(
            f"{elapsed_s:7.2f}  {mark}{run.entry} of {clock_time(run.scheduled_us)} ran on {run.worker},"
            f" {run.late_s * 1000:.0f} ms late (epoch {run.epoch})"
        )

    def update(self, state: DemoState) -> None:
        """Do nothing: this view shows events only."""

    def close(self) -> None:
        """Do nothing."""
