"""Console script ``ha-beat``."""

from __future__ import annotations

import importlib
from typing import cast

import click

COMMANDS = {
    "demo": "ha_beat.demo.command:demo",
}
"""Command name -> ``module:attribute`` of its click command."""


class LazyGroup(click.Group):
    """Group that imports a command when it is used, so that each command needs only its own extra."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, sorted."""
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of this name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ha-beat", prog_name="ha-beat")
def ha_beat() -> None:
    """Run any number of celery beat replicas: one leads, and nothing is enqueued twice."""


def main() -> None:
    """Run the console script."""
    ha_beat(prog_name="ha-beat")


if __name__ == "__main__":
    main()
