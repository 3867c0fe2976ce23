"""Takes over from another scheduler where each entry stands, before the first start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click
from celery import Celery
from celery.utils.imports import load_extension_class_names, symbol_by_name

from ha_beat.cli import output
from ha_beat.cli.cluster import CantTell, NotWell, on_cluster
from ha_beat.cli.last_runs import LastRun, RedBeat, of_celerybeat
from ha_beat.client import ClusterClient
from ha_beat.clock import from_micros
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import Verdict
from ha_beat.scheduler import HAMixin, HAScheduler
from ha_beat.settings import redact_url
from ha_beat.store.connections import link_to
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.scripts import Script, text

#: A last run that lies ahead by more than this is not believed.
_TOLERANCE = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Step:
    """What is to become of one entry: a new row, or the reason why there is none."""

    entry: ScheduledEntry
    last: datetime | None
    note: str
    row: LedgerRow | None = None


@click.command(
    short_help="Take over the last runs from the scheduler used so far.",
    epilog="Example: celery -A proj ha-beat migrate --from redbeat --dry-run",
)
@click.option(
    "--from",
    "source",
    type=click.Choice(["redbeat", "celerybeat", "django"]),
    required=True,
    help="The scheduler so far: redbeat's keys, the file of Celery's own beat, or django-celery-beat's rows.",
)
@click.option(
    "--file",
    "path",
    metavar="PATH",
    help="celerybeat's schedule file (its -s). Default: the app's beat_schedule_filename.",
)
@click.option(
    "--redbeat-url", metavar="URL", help="redbeat's Redis. Default: the app's redbeat_redis_url, or the broker."
)
@click.option(
    "--redbeat-prefix",
    metavar="PREFIX",
    help="redbeat's key prefix. Default: the app's redbeat_key_prefix, or redbeat:.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be taken over.")
@click.option("--force", is_flag=True, help="Also where the ledger knows the entry, unless it knows of a later run.")
@on_cluster
def migrate(
    cluster: ClusterClient,
    *,
    source: str,
    path: str | None,
    redbeat_url: str | None,
    redbeat_prefix: str | None,
    dry_run: bool,
    force: bool,
) -> None:
    """Take over when each entry of beat_schedule last ran, from the scheduler that was used so far.

    Stop the old scheduler first, and start ha_beat after. Refused while somebody leads. What the old scheduler missed
    since it was stopped is then a misfire, by default one catch-up run of each entry.
    """
    entries = _entries(cluster.app)
    unknown: set[str] = set()
    last: Mapping[str, LastRun]
    if source == "redbeat":
        redbeat = _redbeat(cluster, redbeat_url, redbeat_prefix)
        last, names = redbeat.last_runs(entries), redbeat.names()
        if not names and not last:
            raise NotWell(
                f"nothing was taken over: there is nothing of redbeat's under the prefix {redbeat.prefix!r} at "
                f"{redbeat.place}. Say where it is with --redbeat-url and --redbeat-prefix"
            )
        unknown = names - entries.keys()
    elif source == "celerybeat":
        last = of_celerybeat(path or str(cluster.app.conf.beat_schedule_filename), cluster.app)
        unknown = last.keys() - entries.keys()
    else:
        last = _of_django()
        unknown = last.keys() - entries.keys()
    known = cluster.ledger.read()
    now = from_micros(cluster.view().server_ms * 1000)
    steps = [_step(entry, last.get(name), known.get(name), now, force=force) for name, entry in entries.items()]
    rows = [(each.entry.id, f"{each.last:%Y-%m-%d %H:%M:%S}Z" if each.last else "-", each.note) for each in steps]
    output.show_table(("ENTRY", "LAST RUN", "TAKEN OVER"), rows)
    for name in sorted(unknown):
        click.echo(f"{name} is not in beat_schedule: put it there, or it will not run")
    wanted = [each for each in steps if each.row is not None]
    if dry_run:
        click.echo(f"{len(wanted)} of {len(steps)} entries would be taken over; nothing was done")
        return
    _write(cluster, wanted)
    click.echo(f"{len(wanted)} of {len(steps)} entries were taken over")


def _entries(app: Celery) -> dict[str, ScheduledEntry]:
    """The entries as the scheduler in use has them, by id.

    Raises:
        CantTell: its entries are in a database.
    """
    configured = str(app.conf.beat_scheduler or "ha_beat")
    if configured.startswith("ha_beat.django"):
        raise CantTell(
            "nothing is to be done for ha_beat.django: it begins from last_run_at in the rows of the database. This "
            "command is for a schedule in the settings"
        )
    names: Any = load_extension_class_names("celery.beat_schedulers")
    try:
        kind: Any = symbol_by_name(configured, aliases=dict(names))
    except (ImportError, AttributeError):
        kind = HAScheduler
    if not (isinstance(kind, type) and issubclass(kind, HAMixin)):
        kind = HAScheduler
    scheduler: HAMixin = kind(app=app, lazy=True)
    scheduler.setup_schedule()
    return {entry.id: entry for entry in scheduler.schedule_source.load()}


def _redbeat(cluster: ClusterClient, url: str | None, prefix: str | None) -> RedBeat:
    conf: Mapping[str, Any] = cluster.app.conf
    url = (
        url or conf.get("redbeat_redis_url") or conf.get("REDBEAT_REDIS_URL") or str(cluster.app.conf.broker_url or "")
    )
    prefix = prefix or conf.get("redbeat_key_prefix") or conf.get("REDBEAT_KEY_PREFIX") or "redbeat:"
    link = link_to(str(url), cluster.settings.redis_options, cluster.settings.command_timeout, f"{prefix}:schedule")
    return RedBeat(link.client, str(prefix), redact_url(str(url)))


def _of_django() -> dict[str, LastRun]:
    try:
        from ha_beat.django.last_runs import last_runs

        return {name: LastRun(at, count) for name, (at, count) in last_runs().items()}
    except Exception as exc:
        raise CantTell(f"django-celery-beat's rows can't be read: {type(exc).__name__}: {exc}") from exc


def _step(entry: ScheduledEntry, last: LastRun | None, raw: str | None, now: datetime, *, force: bool) -> Step:
    if last is None:
        return Step(entry, None, "no: it never ran there")
    if last.at > now + _TOLERANCE:
        return Step(entry, last.at, "no: that lies ahead of now")
    if raw is not None:
        found = LedgerRow.parse(raw)
        if found is None:
            return Step(entry, last.at, "no: newer software has written its row")
        if not force:
            return Step(entry, last.at, "no: the ledger knows it already (--force)")
        if found.base >= last.at:
            return Step(entry, last.at, "no: the ledger knows of a later run")
    row = LedgerRow(base=last.at, verdict=Verdict.ARMED, run_count=last.count, signature=entry.signature, raw=raw or "")
    return Step(entry, last.at, "yes", row)


def _write(cluster: ClusterClient, steps: list[Step]) -> None:
    """Write the rows, if nobody leads.

    Raises:
        NotWell: somebody leads, or another wrote at the same time.
    """
    args = [part for each in steps if each.row for part in (each.entry.id, each.row.raw, each.row.encoded())]
    answer, *done = Script("seed")(cluster.client(), [cluster.keys.lease, cluster.keys.ledger], args)
    if text(answer) == "led":
        raise NotWell(f"nothing was taken over: {text(done[0])} leads. Stop all replicas first")
    late = [each.entry.id for each, one in zip(steps, done, strict=True) if not int(one)]
    if late:
        raise NotWell(f"somebody else wrote {', '.join(late)} at the same time; the others were taken over")


COMMANDS = (migrate,)
