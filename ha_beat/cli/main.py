"""Console script ``ha-beat``."""

from __future__ import annotations

import click

from ha_beat.demo.command import demo


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ha-beat", prog_name="ha-beat")
def ha_beat() -> None:
    """Run any number of celery beat replicas: one leads, and nothing is enqueued twice."""


ha_beat.add_command(demo)


def main() -> None:
    """Run the console script."""
    ha_beat(prog_name="ha-beat")


if __name__ == "__main__":
    main()
