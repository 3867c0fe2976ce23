"""The live view, in a terminal. Needs ``rich``, from the extra ``demo``."""

from __future__ import annotations

from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ha_beat.demo.counting import Run
from ha_beat.demo.scene import Scene, clock_time, in_words, percentile

ROLE_STYLES = {
    "leader": "bold green",
    "standby": "cyan",
    "starting": "dim",
    "paused": "yellow",
    "dead": "bold red",
}
RUNS_SHOWN = 8
NOTES_SHOWN = 8
TAKEOVERS_SHOWN = 4


class LiveView:
    """Tables that change in place."""

    def __init__(self, console: Console | None = None) -> None:
        self._notes: deque[Text] = deque(maxlen=NOTES_SHOWN)
        self._runs: deque[tuple[Run, bool]] = deque(maxlen=RUNS_SHOWN)
        self._live = Live(console=console, auto_refresh=False, screen=False, transient=False)
        self._live.start()

    def note(self, elapsed_s: float, text: str, *, grave: bool = False) -> None:
        self._notes.append(Text(f"{elapsed_s:7.2f}  {text}", style="bold red" if grave else ""))

    def ran(self, _elapsed_s: float, run: Run, *, duplicate: bool) -> None:
        self._runs.append((run, duplicate))

    def show(self, scene: Scene) -> None:
        self._live.update(self.render(scene), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def render(self, scene: Scene) -> Group:
        """Put a moment into tables."""
        of = f" of {scene.duration_s:.0f} s" if scene.duration_s else " s, Ctrl-C ends it"
        head = Text(f"ha-beat demo   {scene.elapsed_s:.0f}{of}   next: {scene.outlook}", style="bold")
        return Group(
            head,
            self._replicas(scene),
            self._counters(scene),
            self._takeovers(scene),
            self._recent_runs(),
            Panel(Group(*self._notes), title="events", title_align="left", height=NOTES_SHOWN + 2),
        )

    @staticmethod
    def _replicas(scene: Scene) -> Table:
        table = Table(expand=True, title="replicas", title_justify="left")
        for column in ("replica", "pid", "role", "epoch", "lease renewed"):
            table.add_column(column)
        for row in scene.replicas:
            table.add_row(
                row.name,
                str(row.pid or ""),
                Text(row.role, style=ROLE_STYLES.get(row.role, "")),
                str(row.epoch or ""),
                f"{row.lease_age_s:.1f} s ago" if row.lease_age_s is not None else "",
            )
        return table

    @staticmethod
    def _counters(scene: Scene) -> Table:
        counts = scene.counts
        table = Table(expand=True)
        lost = counts.missed + counts.skipped
        for name in ("enqueued", "duplicates", "missed", "coalesced", "takeovers", "lateness p50 / max"):
            table.add_column(name, justify="right")
        table.add_row(
            str(counts.arrived),
            Text(str(counts.duplicates + counts.off_grid), style=_alarm(counts.duplicates + counts.off_grid)),
            Text(str(lost), style=_alarm(lost)),
            str(counts.coalesced),
            str(counts.takeovers),
            f"{_ms(percentile(scene.lateness_s, 0.5))} / {_ms(percentile(scene.lateness_s, 1.0))}",
        )
        return table

    @staticmethod
    def _takeovers(scene: Scene) -> Panel:
        latest = [Text(in_words(takeover)) for takeover in scene.takeovers[-TAKEOVERS_SHOWN:]]
        return Panel(Group(*latest), title="takeovers", title_align="left", height=TAKEOVERS_SHOWN + 2)

    def _recent_runs(self) -> Table:
        table = Table(expand=True, title="last messages, as the worker ran them", title_justify="left")
        for column in ("entry", "meant for (UTC)", "epoch", "worker", "late"):
            table.add_column(column)
        for run, duplicate in self._runs:
            table.add_row(
                run.entry,
                clock_time(run.scheduled_us),
                str(run.epoch),
                run.worker,
                _ms(run.late_s),
                style="bold red" if duplicate else "",
            )
        for _ in range(RUNS_SHOWN - len(self._runs)):
            table.add_row()
        return table


def _alarm(count: int) -> str:
    return "bold red" if count else "bold green"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
