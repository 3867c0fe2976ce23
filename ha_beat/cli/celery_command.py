"""``celery -A proj ha-beat …``: see the cluster and steer it.

Celery loads this module for each of its commands: what is needed only by ours is imported when one is called.
"""

from __future__ import annotations

import difflib

import click


class LazyGroup(click.Group):
    """Commands in the order in which they are of use; a wrong name is answered with the nearest."""

    def _load(self) -> None:
        if self.commands:
            return
        from ha_beat.cli import control, inspect, migrate

        for command in (*inspect.COMMANDS, *control.COMMANDS, *migrate.COMMANDS):
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Name the commands."""
        self._load()
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command."""
        self._load()
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first argument."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            near = difflib.get_close_matches(args[0], self.commands, n=2, cutoff=0.4)
            if not near or type(exc) is not click.UsageError:
                # Newer versions of click have an error of their own for this, with a hint.
                raise
            raise click.UsageError(f"{exc.message} Did you mean {' or '.join(near)}?", ctx) from None


@click.group(
    "ha-beat",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, or all is well; 1 not well, or the leader did not do what was asked; 2 can't tell: "
    "Redis can't be asked, or the command line or a setting is wrong.",
)
def ha_beat() -> None:
    """See the cluster of beat replicas, and steer it."""
