"""Command ``ha-beat demo``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from ha_beat.demo.view_model import View

DURATION_WITHOUT_TERMINAL_S = 60.0


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP: the first one stops the demo, a second one stops it at once."""

    def __init__(self) -> None:
        self._signals = 0

    def listen(self) -> None:
        """Install the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._count)

    def stop_requested(self) -> bool:
        """True after the first signal."""
        return self._signals > 0

    def stop_now(self) -> bool:
        """True after the second signal."""
        return self._signals > 1

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1


@click.command()
@click.option(
    "--duration",
    type=click.FloatRange(min=1.0),
    metavar="SECONDS",
    help="Seconds to run after the first message. [default: until Ctrl-C in a terminal, else 60]",
)
@click.option("--plain", is_flag=True, help="Print one line per event. Default without a terminal.")
@click.option("--replicas", type=click.IntRange(2, 20), default=3, show_default=True, help="Number of beat replicas.")
@click.option("--seed", type=int, help="Seed for the order of the faults.")
@click.option(
    "--logs", type=click.Path(file_okay=False, path_type=Path), help="Folder to keep the logs of all processes in."
)
def demo(duration: float | None, plain: bool, replicas: int, seed: int | None, logs: Path | None) -> None:
    """Watch three replicas of celery beat while the leader fails again and again.

    Starts an embedded Redis, three replicas of celery beat and a worker. Kills, pauses and stops the
    leader by turns, and counts what the worker ran. Exit status 1 if an occurrence was enqueued twice or lost.
    """
    from ha_beat.demo.processes import DemoError
    from ha_beat.demo.runner import DemoRunner, Options
    from ha_beat.demo.view_model import summary

    terminal = sys.stdout.isatty()
    if duration is None and not terminal:
        duration = DURATION_WITHOUT_TERMINAL_S
    signals = StopSignals()
    signals.listen()
    view: View = _view(plain=plain or not terminal)
    runner = DemoRunner(Options(replicas, duration, seed, logs), view, signals.stop_requested, signals.stop_now)
    try:
        state = runner.run()
        view.update(state)
    except DemoError as problem:
        view.close()
        raise click.ClickException(str(problem)) from problem
    finally:
        view.close()
    click.echo()
    for line in summary(state):
        click.echo(line)
    if not state.counts.arrived:
        click.echo("the demo ended before the first message")
    if runner.accidents:
        click.echo(f"{runner.accidents} replica(s) ended, or did not end, unexpectedly")
    sys.exit(0 if state.counts.arrived and state.counts.sound and not runner.accidents else 1)


def _view(*, plain: bool) -> View:
    from ha_beat.demo.plain import PlainView

    if plain:
        return PlainView()
    try:
        from ha_beat.demo.live import LiveView
    except ImportError:
        click.echo("The live view needs an extra: pip install 'ha-beat[demo]'", err=True)
        return PlainView()
    return LiveView()
