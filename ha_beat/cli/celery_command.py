"""``celery -A proj ha-beat …``: see the cluster and steer it."""

from __future__ import annotations

import click

from ha_beat.cli import look, steer
from ha_beat.cli.cluster import Group


@click.group(
    "ha-beat",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 all is well; 1 it is not, or the leader did not do what was asked; 2 it can't be told.",
)
def ha_beat() -> None:
    """See the cluster of beat replicas, and steer it."""


for command in (*look.COMMANDS, *steer.COMMANDS):
    ha_beat.add_command(command)
