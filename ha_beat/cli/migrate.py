"""Command ``migrate``: import the last runs from another scheduler, before the first start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click
from celery import Celery
from celery.utils.imports import load_extension_class_names, symbol_by_name

from ha_beat.cli import output
from ha_beat.cli.command import CommandFailed, CommandUnavailable, on_cluster
from ha_beat.cli.last_runs import LastRun, RedBeat, celerybeat_last_runs
from ha_beat.client import ClusterClient
from ha_beat.clock import from_micros
from ha_beat.exception_text import exception_line
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import Verdict
from ha_beat.scheduler import HAMixin, HAScheduler
from ha_beat.settings import redact_url
from ha_beat.store.connections import link_to
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.scripts import Script, text

#: A last run that is further in the future than this is not imported.
_TOLERANCE = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class EntryImport:
    """Import of one entry: its new ledger row, or why it is not imported."""

    entry: ScheduledEntry
    last: datetime | None
    note: str
    row: LedgerRow | None = None


@click.command(
    short_help="Import the last runs from another scheduler.",
    epilog="Example: celery -A proj ha-beat migrate --from redbeat --dry-run",
)
@click.option(
    "--from",
    "source",
    type=click.Choice(["redbeat", "celerybeat", "django", "sqlalchemy"]),
    required=True,
    help="Previous scheduler: redbeat, Celery's own beat (its schedule file), django-celery-beat, or "
    "sqlalchemy-celery-beat.",
)
@click.option(
    "--file",
    "path",
    metavar="PATH",
    help="Schedule file of Celery's beat (its -s). Default: the app's beat_schedule_filename.",
)
@click.option(
    "--redbeat-url", metavar="URL", help="Redis of redbeat. Default: the app's redbeat_redis_url, or the broker."
)
@click.option(
    "--redbeat-prefix",
    metavar="PREFIX",
    help="Key prefix of redbeat. Default: the app's redbeat_key_prefix, or redbeat:.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be imported.")
@click.option("--force", is_flag=True, help="Also import entries that the ledger has, unless it has a later run.")
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
    """Import the last run of each entry of beat_schedule from the previous scheduler.

    Stop the previous scheduler first, and start ha_beat afterwards. Refused while there is a leader. Occurrences that
    fell due in between are misfires: by default, each entry runs once to catch up.
    """
    schedule = _schedule(cluster.app)
    if source == "redbeat":
        last, names = _redbeat_last_runs(cluster, schedule, redbeat_url, redbeat_prefix)
    else:
        path = path or str(cluster.app.conf.beat_schedule_filename)
        stored = source != "celerybeat"
        last = _stored_last_runs(source, cluster.app) if stored else celerybeat_last_runs(path, cluster.app)
        names = set(last)
    known = cluster.ledger.read()
    now = from_micros(cluster.view().server_ms * 1000)
    imports = [_import(entry, last.get(name), known.get(name), now, force=force) for name, entry in schedule.items()]
    rows = [(each.entry.id, output.second(each.last), each.note) for each in imports]
    output.show_table(("ENTRY", "LAST RUN", "IMPORTED"), rows)
    for name in sorted(names - schedule.keys()):
        click.echo(f"{name} is not in beat_schedule: it will not run unless you add it")
    imported = [each for each in imports if each.row is not None]
    if dry_run:
        click.echo(f"{len(imported)} of {len(imports)} entries would be imported; nothing was done")
        return
    _write(cluster, imported)
    click.echo(f"{len(imported)} of {len(imports)} entries were imported")


def _schedule(app: Celery) -> dict[str, ScheduledEntry]:
    """Return the entries of the app's scheduler, by id.

    Raises:
        CommandUnavailable: the entries are in a database.
    """
    configured = str(app.conf.beat_scheduler or "ha_beat")
    kind = ".".join(configured.split(":", maxsplit=1)[0].split(".")[:2])
    if kind in ("ha_beat.django", "ha_beat.sqlalchemy"):
        raise CommandUnavailable(
            f"{kind} needs no import: it starts from last_run_at in the rows of the database. This command is "
            "for a schedule in the settings"
        )
    if configured.startswith("ha_beat.redbeat"):
        raise CommandUnavailable("ha_beat.redbeat needs no import: it starts from redbeat's last runs")
    names: Any = load_extension_class_names("celery.beat_schedulers")
    try:
        cls: Any = symbol_by_name(configured, aliases=dict(names))
    except (ImportError, AttributeError):
        cls = HAScheduler
    if not (isinstance(cls, type) and issubclass(cls, HAMixin)):
        cls = HAScheduler
    scheduler: HAMixin = cls(app=app, lazy=True)
    scheduler.setup_schedule()
    return {entry.id: entry for entry in scheduler.schedule_source.load()}


def _redbeat_last_runs(
    cluster: ClusterClient, schedule: Mapping[str, ScheduledEntry], url: str | None, prefix: str | None
) -> tuple[dict[str, LastRun], set[str]]:
    """Return the last runs of these entries, and the names of all of redbeat's entries.

    Raises:
        CommandFailed: redbeat has no keys there.
    """
    conf: Mapping[str, Any] = cluster.app.conf
    url = str(url or conf.get("redbeat_redis_url") or conf.get("REDBEAT_REDIS_URL") or conf.get("broker_url") or "")
    prefix = str(prefix or conf.get("redbeat_key_prefix") or conf.get("REDBEAT_KEY_PREFIX") or "redbeat:")
    link = link_to(url, cluster.settings.redis_options, cluster.settings.command_timeout, f"{prefix}:schedule")
    redbeat = RedBeat(link.client, prefix)
    last, names = redbeat.last_runs(schedule), redbeat.names()
    if not names and not last:
        raise CommandFailed(
            f"nothing was imported: redbeat has no keys with the prefix {prefix!r} at {redact_url(url)}. "
            f"Set --redbeat-url and --redbeat-prefix"
        )
    return last, names


def _stored_last_runs(source: str, app: Celery) -> dict[str, LastRun]:
    """Return the last runs in the rows of django-celery-beat or sqlalchemy-celery-beat.

    Raises:
        CommandUnavailable: the rows can't be read.
    """
    try:
        if source == "django":
            from ha_beat.django.queries import last_runs

            found = last_runs()
        else:
            from ha_beat.sqlalchemy.schedulers import stored_last_runs

            found = stored_last_runs(app)
        return {name: LastRun(at, count) for name, (at, count) in found.items()}
    except Exception as exc:
        raise CommandUnavailable(f"the rows of {source}-celery-beat can't be read: {exception_line(exc)}") from exc


def _import(entry: ScheduledEntry, last: LastRun | None, raw: str | None, now: datetime, *, force: bool) -> EntryImport:
    if last is None:
        return EntryImport(entry, None, "no: it has never run")
    if last.at > now + _TOLERANCE:
        return EntryImport(entry, last.at, "no: the time is in the future")
    if raw is not None:
        found = LedgerRow.parse(raw)
        if found is None:
            return EntryImport(entry, last.at, "no: a newer version of ha_beat has written its row")
        if not force:
            return EntryImport(entry, last.at, "no: the ledger has it already (--force)")
        if found.base >= last.at:
            return EntryImport(entry, last.at, "no: the ledger has a later run")
    row = LedgerRow(base=last.at, verdict=Verdict.ARMED, run_count=last.count, signature=entry.signature, raw=raw or "")
    return EntryImport(entry, last.at, "yes", row)


def _write(cluster: ClusterClient, imports: list[EntryImport]) -> None:
    """Write the rows if there is no leader.

    Raises:
        CommandFailed: there is a leader, or another process wrote some of the rows at the same time.
    """
    args = [part for each in imports if each.row for part in (each.entry.id, each.row.raw, each.row.encoded())]
    answer, *done = Script("seed")(cluster.client(), [cluster.keys.lease, cluster.keys.ledger], args)
    if text(answer) == "led":
        raise CommandFailed(f"nothing was imported: {text(done[0])} leads. Stop all replicas first")
    changed = [each.entry.id for each, one in zip(imports, done, strict=True) if not int(one)]
    if changed:
        raise CommandFailed(f"another process changed {', '.join(changed)}; the other entries were imported")
