"""Views of the demo: the values and texts that every view shows, and the plain view. No Redis and no processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from ha_beat.demo.tally import Counts, FaultKind, Run, Takeover


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """State of one replica."""

    name: str
    pid: int | None
    #: leader, standby, starting, stepping down, paused, dead or ended.
    role: str
    epoch: int | None = None
    lease_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class DemoState:
    """State of the demo at one moment."""

    elapsed_s: float
    #: Seconds to the end; None without a time limit.
    left_s: float | None
    replicas: tuple[ReplicaRow, ...]
    counts: Counts
    takeovers: tuple[Takeover, ...]
    #: Lateness of each run in seconds, sorted.
    lateness_s: tuple[float, ...]
    #: Text about the active or the next fault.
    next_step: str


class View:
    """Plain view, with one line per event, for logs and CI. The live view overrides every method."""

    def note(self, elapsed_s: float, text: str, *, grave: bool = False) -> None:
        """Show an event."""
        click.echo(f"{elapsed_s:7.2f}  {'!! ' if grave else ''}{text}")

    def ran(self, elapsed_s: float, run: Run, *, duplicate: bool) -> None:
        """Show a run."""
        mark = "!! DUPLICATE " if duplicate else ""
        click.echo(
            f"{elapsed_s:7.2f}  {mark}{run.entry} of {clock_time(run.scheduled_us)} ran on {run.worker},"
            f" {run.late_s * 1000:.0f} ms late (epoch {run.epoch})"
        )

    def update(self, state: DemoState) -> None:
        """Show the current state. The plain view shows only events."""

    def close(self) -> None:
        """Restore the terminal."""


def percentile(values: tuple[float, ...], share: float) -> float:
    """Return the percentile of sorted values, for a ``share`` from 0 to 1; 0 without values."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def clock_time(instant_us: int) -> str:
    """Return the time of day in UTC, in milliseconds."""
    return datetime.fromtimestamp(instant_us / 1e6, UTC).strftime("%H:%M:%S.%f")[:-3]


def takeover_text(takeover: Takeover) -> str:
    """Return one line about a takeover."""
    cause = f"was {takeover.cause.past_tense}" if takeover.cause else "lost the lease"
    after = "" if takeover.led_after_s is None else f" after {takeover.led_after_s:.2f} s"
    silence = "" if takeover.silence_s is None else f", no message for {takeover.silence_s:.2f} s"
    return f"{takeover.before} {cause}: {takeover.replica} leads{after}{silence}"


def summary(state: DemoState) -> list[str]:
    """Return the final lines of the demo."""
    counts = state.counts
    median, most = percentile(state.lateness_s, 0.5) * 1000, percentile(state.lateness_s, 1.0) * 1000
    lines = [
        f"ran:        {counts.arrived} occurrences in {state.elapsed_s:.0f} s",
        f"late by:    {median:.0f} ms (median), {most:.0f} ms (most)",
        f"duplicates: {counts.duplicates}",
        f"missed:     {counts.missed}",
        f"coalesced:  {counts.coalesced}   (overdue while there was no leader: the newest ran for them)",
    ]
    if counts.skipped:
        lines.append(f"skipped:    {counts.skipped}   (for another reason)")
    if counts.off_grid:
        lines.append(f"off grid:   {counts.off_grid}   (ran at an instant that is not in the schedule)")
    lines.append(f"takeovers:  {counts.takeovers}")
    for kind in (*FaultKind, None):
        chosen = [takeover for takeover in state.takeovers if takeover.cause is kind]
        if not chosen:
            continue
        name = f"{kind.past_tense} ({kind.signal_name})" if kind else "without a fault"
        led = tuple(sorted(t.led_after_s for t in chosen if t.led_after_s is not None))
        silences = tuple(sorted(t.silence_s for t in chosen if t.silence_s is not None))
        lines.append(
            f"  {name:<17} {len(chosen):>3}   new leader after {percentile(led, 0.5):.2f} s (median),"
            f" {percentile(led, 1.0):.2f} s (most); silence {percentile(silences, 0.5):.2f} s,"
            f" {percentile(silences, 1.0):.2f} s"
        )
    if not counts.sound:
        lines.append("FAILED: an occurrence was enqueued twice or lost")
    elif counts.arrived:
        lines.append("nothing was enqueued twice and nothing was lost")
    return lines
