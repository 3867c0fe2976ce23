"""Live view, in a terminal. Needs ``rich``, from the extra ``demo``."""

from __future__ import annotations

from collections import deque

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ha_beat.demo.tally import Run
from ha_beat.demo.view import DemoState, View, clock_time, percentile, takeover_text

ROLE_STYLES = {
    "leader": "bold green",
    "standby": "cyan",
    "starting": "dim",
    "paused": "bold yellow",
    "dead": "bold red",
}
MOST_LINES = 12
#: Heading, counters, titles, headers and blank lines.
FIXED_LINES = 13
#: Least number of columns for epoch and worker of the runs.
WIDE = 80
SUMMARY = "The leader is killed, paused and stopped in turn. Duplicates and missed must stay 0."


class LiveView(View):
    """View with tables that change in place and fit the height of the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._notes: deque[Text] = deque(maxlen=MOST_LINES)
        self._runs: deque[tuple[Run, bool]] = deque(maxlen=MOST_LINES)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def note(self, elapsed_s: float, text: str, *, grave: bool = False) -> None:
        self._notes.append(Text(f"{elapsed_s:7.2f}  {text}", style="bold red" if grave else ""))

    def ran(self, elapsed_s: float, run: Run, *, duplicate: bool) -> None:  # noqa: ARG002 -- as in the plain view
        self._runs.append((run, duplicate))

    def update(self, state: DemoState) -> None:
        self._live.update(self.render(state), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def render(self, state: DemoState) -> Group:
        room = max(5, self._console.height - FIXED_LINES - len(state.replicas))
        takeovers = min(4, room // 4)
        lines = min(MOST_LINES, (room - takeovers) // 2)
        blank = Text()
        return Group(
            self._heading(state),
            Text(SUMMARY, style="dim", no_wrap=True, overflow="ellipsis"),
            blank,
            self._replicas(state),
            blank,
            self._counters(state),
            blank,
            *self._section("takeovers", [Text(takeover_text(t)) for t in state.takeovers], takeovers),
            *self._section("events", self._notes, lines),
            blank,
            self._recent_runs(lines),
        )

    @staticmethod
    def _heading(state: DemoState) -> Text:
        end = "Ctrl-C ends it" if state.left_s is None else f"{state.left_s:.0f} s left"
        return Text.assemble(
            ("ha-beat demo", "bold"), f"   {state.elapsed_s:.0f} s, {end}   next: ", (state.next_step, "yellow")
        )

    @staticmethod
    def _replicas(state: DemoState) -> Table:
        table = _table("replica", "pid", "role", "epoch", "lease renewed")
        for row in state.replicas:
            table.add_row(
                row.name,
                str(row.pid or ""),
                Text(row.role, style=ROLE_STYLES.get(row.role, "")),
                str(row.epoch or ""),
                f"{row.lease_age_s:.1f} s ago" if row.lease_age_s is not None else "",
            )
        return table

    @staticmethod
    def _counters(state: DemoState) -> Text:
        counts = state.counts
        lost = counts.missed + counts.skipped
        doubled = counts.duplicates + counts.off_grid
        return Text.assemble(
            f"enqueued {counts.arrived}   ",
            (f"duplicates {doubled}", _alarm(doubled)),
            "   ",
            (f"missed {lost}", _alarm(lost)),
            f"   coalesced {counts.coalesced}   takeovers {counts.takeovers}",
            f"   late {_ms(percentile(state.lateness_s, 0.5))} (median),",
            f" {_ms(percentile(state.lateness_s, 1.0))} (longest)",
            no_wrap=True,
            overflow="ellipsis",
        )

    @staticmethod
    def _section(title: str, texts: list[Text] | deque[Text], lines: int) -> list[RenderableType]:
        shown = list(texts)[-lines:]
        for text in shown:
            text.no_wrap, text.overflow = True, "ellipsis"
        # The height is constant, so that the tables below do not move.
        return [Text(title, style="bold"), *shown, *[Text()] * (lines - len(shown))]

    def _recent_runs(self, lines: int) -> Table:
        wide = self._console.width >= WIDE
        table = _table("entry", "due (UTC)", *(("epoch", "worker") if wide else ()), "late by")
        for run, duplicate in list(self._runs)[-lines:]:
            more = (str(run.epoch), run.worker) if wide else ()
            style = "bold red" if duplicate else ""
            table.add_row(run.entry, clock_time(run.scheduled_us), *more, _ms(run.late_s), style=style)
        return table


def _table(*columns: str) -> Table:
    table = Table(box=None, expand=True, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _alarm(count: int) -> str:
    return "bold white on red" if count else "bold green"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
