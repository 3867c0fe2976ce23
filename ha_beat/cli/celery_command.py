"""Command group ``celery -A proj ha-beat``.

Celery loads this module for every command, so the modules of the subcommands are imported only when used.
"""

from __future__ import annotations

import click

from ha_beat.suggest import did_you_mean, nearest


class LazyGroup(click.Group):
    """Group that imports its commands on first use, and suggests a name for a misspelled one."""

    def _load(self) -> None:
        if self.commands:
            return
        from ha_beat.cli.control import backfill, pause, resume, run, step_down
        from ha_beat.cli.history import history
        from ha_beat.cli.inspect import doctor, next_, settings
        from ha_beat.cli.migrate import migrate
        from ha_beat.cli.status import check, status

        inspection = (status, check, history, next_, settings, doctor)
        for command in (*inspection, step_down, pause, resume, run, backfill, migrate):
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the names of the commands, those that change nothing first."""
        self._load()
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._load()
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            near = nearest(args[0], self.commands, limit=2)
            if not near or type(exc) is not click.UsageError:
                # Newer versions of click add a hint themselves.
                raise
            raise click.UsageError(f"{exc.message.rstrip('.')}{did_you_mean(near)}", ctx) from None


@click.group(
    "ha-beat",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, or healthy; 1 unhealthy, or the leader refused; 2 Redis is unavailable, or the "
    "command line or a setting is wrong.",
)
def ha_beat() -> None:
    """Inspect and control the cluster of beat replicas."""
