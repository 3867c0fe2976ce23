"""What the views are given to show: plain values, no Redis and no processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from ha_beat.demo.tally import Counts, FaultKind, Run, Takeover


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One replica, as the view shows it."""

    name: str
    pid: int | None
    role: str
    """leader, standby, starting, stepping down, paused, dead or ended."""
    epoch: int | None = None
    lease_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """One moment of the demo."""

    elapsed_s: float
    left_s: float | None
    """Seconds to the end, where there is one set."""
    replicas: tuple[ReplicaRow, ...]
    counts: Counts
    takeovers: tuple[Takeover, ...]
    lateness_s: tuple[float, ...]
    """How late each run was, sorted."""
    outlook: str
    """What comes next."""


class View(Protocol):
    """Something that shows the demo."""

    def note(self, elapsed_s: float, text: str, *, grave: bool = False) -> None:
        """Show an event."""

    def ran(self, elapsed_s: float, run: Run, /, *, duplicate: bool) -> None:
        """Show a run."""

    def show(self, scene: Scene) -> None:
        """Show a moment."""

    def close(self) -> None:
        """Give the terminal back."""


def percentile(values: tuple[float, ...], share: float) -> float:
    """The value below which ``share`` (0 to 1) of these sorted values lie; 0 of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def clock_time(instant_us: int) -> str:
    """The time of day in UTC, to the millisecond."""
    return datetime.fromtimestamp(instant_us / 1e6, UTC).strftime("%H:%M:%S.%f")[:-3]


def in_words(takeover: Takeover) -> str:
    """One line on a takeover."""
    cause = f"{takeover.before} {takeover.cause.past_tense}" if takeover.cause else f"{takeover.before} gave way"
    parts = [f"{cause}, {takeover.replica} leads"]
    if takeover.led_after_s is not None:
        parts.append(f"after {takeover.led_after_s:.2f} s")
    if takeover.silence_s is not None:
        parts.append(f"(last message to first: {takeover.silence_s:.2f} s)")
    return " ".join(parts)


def summary(scene: Scene) -> list[str]:
    """The lines that close the demo."""
    counts = scene.counts
    median, most = percentile(scene.lateness_s, 0.5) * 1000, percentile(scene.lateness_s, 1.0) * 1000
    lines = [
        f"ran:        {counts.arrived} occurrences in {scene.elapsed_s:.0f} s",
        f"late by:    {median:.0f} ms (median), {most:.0f} ms (most)",
        f"duplicates: {counts.duplicates}",
        f"missed:     {counts.missed}",
        f"coalesced:  {counts.coalesced}   (overdue while nobody led: the latest ran for them)",
    ]
    if counts.skipped:
        lines.append(f"skipped:    {counts.skipped}   (for another reason: see the journal)")
    if counts.off_grid:
        lines.append(f"off grid:   {counts.off_grid}   (ran at an instant that is not one of the schedule's)")
    lines.append(f"takeovers:  {counts.takeovers}")
    for kind in (*FaultKind, None):
        chosen = [takeover for takeover in scene.takeovers if takeover.cause is kind]
        if not chosen:
            continue
        name = f"{kind.past_tense} ({kind.signal_name})" if kind else "unprovoked"
        led = tuple(sorted(t.led_after_s for t in chosen if t.led_after_s is not None))
        silences = tuple(sorted(t.silence_s for t in chosen if t.silence_s is not None))
        lines.append(
            f"  {name:<17} {len(chosen):>3}   new leader after {percentile(led, 0.5):.2f} s (median),"
            f" {percentile(led, 1.0):.2f} s (most); silence {percentile(silences, 0.5):.2f} s,"
            f" {percentile(silences, 1.0):.2f} s"
        )
    if not counts.sound:
        lines.append("NOT SOUND: something was enqueued twice, or lost")
    elif counts.arrived:
        lines.append("nothing was enqueued twice and nothing was lost")
    return lines
