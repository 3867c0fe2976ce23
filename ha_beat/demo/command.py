"""The command ``ha-beat demo``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from ha_beat.demo.view_model import View

DURATION_WITHOUT_TERMINAL_S = 60.0


class Wishes:
    """Ctrl-C, SIGTERM and SIGHUP as wishes: the first ends the show, a second makes it hurry."""

    def __init__(self) -> None:
        self._signals = 0

    def listen(self) -> None:
        """Take the signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._heard)

    def to_end(self) -> bool:
        return self._signals > 0

    def to_hurry(self) -> bool:
        return self._signals > 1

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1


@click.command()
@click.option(
    "--duration",
    type=click.FloatRange(min=1.0),
    metavar="SECONDS",
    help="How long to run, from the first message on. [default: until Ctrl-C in a terminal, else 60]",
)
@click.option("--plain", is_flag=True, help="One line for each event; chosen by itself where there is no terminal.")
@click.option("--replicas", type=click.IntRange(2, 20), default=3, show_default=True, help="How many beats.")
@click.option("--seed", type=int, help="Repeat the order of the faults.")
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the logs of all processes in this folder.",
)
def demo(duration: float | None, plain: bool, replicas: int, seed: int | None, logs: Path | None) -> None:
    """Watch three beats, one leader, and what happens when it dies.

    Starts an embedded Redis, three replicas of celery beat and a worker; kills, pauses and stops the
    leader by turns; counts what the worker ran. Exit status 1 if anything was enqueued twice or lost.
    """
    from ha_beat.demo.processes import DemoError
    from ha_beat.demo.runner import Options, Show
    from ha_beat.demo.view_model import summary

    terminal = sys.stdout.isatty()
    if duration is None and not terminal:
        duration = DURATION_WITHOUT_TERMINAL_S
    wishes = Wishes()
    wishes.listen()
    view: View = _view(plain=plain or not terminal)
    show = Show(Options(replicas, duration, seed, logs), view, wishes.to_end, wishes.to_hurry)
    try:
        scene = show.run()
        view.show(scene)
    except DemoError as problem:
        view.close()
        raise click.ClickException(str(problem)) from problem
    finally:
        view.close()
    click.echo()
    for line in summary(scene):
        click.echo(line)
    if not scene.counts.arrived:
        click.echo("the demo ended before the first message")
    if show.accidents:
        click.echo(f"{show.accidents} replica(s) ended, or did not end, against the plan")
    sys.exit(0 if scene.counts.arrived and scene.counts.sound and not show.accidents else 1)


def _view(*, plain: bool) -> View:
    from ha_beat.demo.plain import PlainView

    if plain:
        return PlainView()
    try:
        from ha_beat.demo.live import LiveView
    except ImportError:
        click.echo("plain lines, as the live view needs an extra: pip install 'ha-beat[demo]'", err=True)
        return PlainView()
    return LiveView()
