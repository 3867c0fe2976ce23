"""The plain view: one line for each event, for logs and for CI."""

from __future__ import annotations

import click

from ha_beat.demo.tally import Run
from ha_beat.demo.view_model import Scene, clock_time


class PlainView:
    """One line for each event, for logs and for CI."""

    def note(self, elapsed_s: float, text: str, *, grave: bool = False) -> None:
        click.echo(f"{elapsed_s:7.2f}  {'!! ' if grave else ''}{text}")

    def ran(self, elapsed_s: float, run: Run, *, duplicate: bool) -> None:
        mark = "!! DUPLICATE " if duplicate else ""
        click.echo(
            f"{elapsed_s:7.2f}  {mark}{run.entry} of {clock_time(run.scheduled_us)} ran on {run.worker},"
            f" {run.late_s * 1000:.0f} ms late (epoch {run.epoch})"
        )

    def show(self, scene: Scene) -> None:
        """Plain lines show events, not moments."""

    def close(self) -> None:
        """Nothing to give back."""
