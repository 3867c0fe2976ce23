"""Command ``ha-beat demo``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from ha_beat.demo.view import View, summary

DURATION_WITHOUT_TERMINAL_S = 60.0


@click.command(short_help="Watch a cluster whose leader fails again and again.")
@click.option(
    "--duration",
    type=click.FloatRange(min=1.0),
    metavar="SECONDS",
    help="Time to run after the first message. [default: until Ctrl-C in a terminal, else 60]",
)
@click.option("--plain", is_flag=True, help="Print one line per event. Default without a terminal.")
@click.option("--replicas", type=click.IntRange(2, 20), default=3, show_default=True, help="Number of beat replicas.")
@click.option("--seed", type=int, help="Seed for the order of the faults.")
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder in which to keep the logs of all processes.",
)
def demo(duration: float | None, plain: bool, replicas: int, seed: int | None, logs: Path | None) -> None:
    """Watch replicas of celery beat while their leader fails again and again.

    Starts an embedded Redis, the replicas and a worker. Kills, pauses and stops the leader in turn, and counts what
    the worker ran. Exit status 1 if an occurrence was enqueued twice or lost.
    """
    from ha_beat.demo.processes import DemoError
    from ha_beat.demo.runner import DemoRunner

    terminal = sys.stdout.isatty()
    if duration is None and not terminal:
        duration = DURATION_WITHOUT_TERMINAL_S
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.append(received))
    view = _view(plain=plain or not terminal)
    runner = DemoRunner(view, replicas=replicas, duration_s=duration, seed=seed, log_folder=logs, signals=signals)
    try:
        state = runner.run()
        view.update(state)
    except DemoError as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        view.close()
    click.echo("\n".join(["", *summary(state)]))
    if not state.counts.arrived:
        click.echo("the demo ended before the first message")
    if runner.accidents:
        click.echo(f"replicas that ended or did not stop unexpectedly: {runner.accidents}")
    sys.exit(0 if state.counts.arrived and state.counts.sound and not runner.accidents else 1)


def _view(*, plain: bool) -> View:
    if plain:
        return View()
    try:
        from ha_beat.demo.live import LiveView
    except ImportError:
        click.echo("The live view needs an extra: pip install 'ha-beat[demo]'", err=True)
        return View()
    return LiveView()
