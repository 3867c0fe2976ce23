"""Command ``history``: the records of the journal."""

from __future__ import annotations

from datetime import datetime

import click

from ha_beat.cli import output
from ha_beat.cli.command import CommandFailed, ask, on_cluster
from ha_beat.cli.options import INSTANT, json_option
from ha_beat.client import ClusterClient
from ha_beat.monitoring.wording import duration, phrase
from ha_beat.reasons import RequestKind, Verdict
from ha_beat.store.journal import Record, TermRecord, VerdictRecord
from ha_beat.suggest import did_you_mean, nearest


@click.command(
    short_help="Show recorded occurrences and changes of leader.",
    epilog="Example: celery -A proj ha-beat history nightly-report --since 2026-03-01",
)
@click.argument("entry", required=False)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Number of records to show."
)
@click.option("--since", type=INSTANT, help="Only records written since then; UTC unless it has an offset.")
@click.option(
    "--verdict", type=click.Choice(["enqueued", "skipped", "uncertain"]), help="Only occurrences with this verdict."
)
@json_option
@on_cluster
def history(
    cluster: ClusterClient, *, entry: str | None, limit: int, since: datetime | None, verdict: str | None, as_json: bool
) -> None:
    """Show the recorded occurrences (of ENTRY) and changes of leader, newest first."""
    found: list[Record] = []
    for record in cluster.journal.between(since):
        if entry is not None and entry not in (record.data.get("entry"), record.data.get("name")):
            continue
        if verdict is not None and not (isinstance(record, VerdictRecord) and record.verdict == verdict):
            continue
        found.append(record)
        if len(found) >= limit:
            break
    if not found and entry is not None:
        known = {*cluster.ledger.read(), *_names(cluster)}
        if entry not in known:
            raise CommandFailed(f"no entry {entry!r} is recorded{did_you_mean(nearest(entry, known))}")
    if as_json:
        output.show_json([{"n": record.n, "kind": record.kind, **record.data} for record in found])
        return
    if not found:
        click.echo("The journal has no matching record.")
        return
    rows = [_row(record) for record in found]
    columns = ("RECORDED", "WHAT", "ENTRY", "DUE", "LATE", "BY", "EPOCH", "DETAIL")
    output.show_table(columns, rows, spare=("EPOCH", "BY"))


def _names(cluster: ClusterClient) -> set[str]:
    """Return the names of the leader's entries, or none if no leader answers."""
    try:
        reply = ask(cluster, RequestKind.NEXT, 3.0, limit=1000)
    except click.ClickException:
        return set()
    return {str(line["name"]) for line in reply.data["entries"]} if reply.ok else set()


def _row(record: Record) -> tuple[object, ...]:
    """Return the columns of a record: what, entry, due, late, by, epoch and detail, after the time of writing."""
    data = record.data
    what, entry, due, late = data.get("event", record.kind), data.get("name") or data.get("entry", ""), "", ""
    if isinstance(record, TermRecord):
        detail = phrase(record.reason, record.detail)
    elif isinstance(record, VerdictRecord):
        what = record.verdict if record.kind == "occurrence" else f"{record.verdict} ({record.kind})"
        entry, due = record.label, f"{record.first:%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z"
        if record.verdict != Verdict.SKIPPED and record.kind == "occurrence":
            late = duration(record.lateness)
        by = f"for {record.asked_by}" if record.asked_by else ""
        detail = " ".join(filter(None, (record.task_id, by, _reason(record))))
    else:
        count = f"{data['count']} of {data['of']}" if "of" in data and "count" in data else ""
        by = f"by {data['asked_by']}" if data.get("asked_by") else ""
        detail = "; ".join(str(part) for part in (count, data.get("why"), by) if part)
    return output.instant(record.ms), what, entry, due, late, record.by, record.epoch, detail


def _reason(record: VerdictRecord) -> str:
    reason = ": ".join(filter(None, (record.reason, record.detail)))
    if record.verdict != Verdict.SKIPPED or record.count == 1:
        return reason
    count = record.count if record.count >= 0 else "many"
    return f"{count} until {output.second(record.until)}: {reason}"
