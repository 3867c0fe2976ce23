"""Commands `next`, `settings` and `doctor`. They change nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

import click

from ha_beat.cli import output
from ha_beat.cli.command import FAILED, CommandFailed, ask, on_cluster
from ha_beat.cli.options import json_option, timeout_option
from ha_beat.client import ClusterClient
from ha_beat.monitoring.doctor.examination import examine
from ha_beat.monitoring.request_wording import reply_text
from ha_beat.monitoring.wording import duration
from ha_beat.reasons import Level, RequestKind

#: Form in which Celery shows a schedule: ``<crontab: 0 4 * * * (m/h/dM/MY/d)>``.
_SCHEDULE = re.compile(r"^<(.*?)(?: \(m/h/dM/MY/d\))?>$")


@click.command("next", epilog="Example: celery -A proj ha-beat next --limit 5")
@click.argument("entry", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Number of entries to show.")
@timeout_option()
@json_option
@on_cluster
def next_(cluster: ClusterClient, *, entry: str | None, limit: int, timeout: float, as_json: bool) -> None:
    """Show the next due time of each entry, by the leader's schedule."""
    reply = ask(cluster, RequestKind.NEXT, timeout, limit=limit, entry=entry or "")
    if not reply.ok:
        raise CommandFailed(reply_text(reply.code, reply.data))
    entries = reply.data["entries"]
    if as_json:
        output.show_json(entries)
        return
    now = cluster.clock.wall()
    rows = []
    for line in entries:
        due = datetime.fromisoformat(line["due"]) if line["due"] else None
        wait = "?" if due is None else duration(due.timestamp() - now)
        when = output.second(due) if due else "decided by its schedule class"
        last = output.second(datetime.fromisoformat(line["last"]) if line["last"] else None)
        schedule = _SCHEDULE.sub(r"\1", line["schedule"])
        rows.append((line["name"], when, wait, last, line["run_count"], line["task"], schedule))
    output.show_table(("ENTRY", "DUE", "IN", "LAST", "RUNS", "TASK", "SCHEDULE"), rows, spare=("RUNS", "LAST", "TASK"))


@click.command(
    short_help="Show every setting, its value and its source.",
    epilog="Example: celery -A proj ha-beat settings --changed",
)
@json_option
@click.option("--changed", is_flag=True, help="Only settings that differ from their default.")
@on_cluster
def settings(cluster: ClusterClient, *, as_json: bool, changed: bool) -> None:
    """Show every setting, its value for this process and its source. Secrets are hidden."""
    used = [each for each in cluster.settings.describe() if not (changed and each.is_default)]
    if as_json:
        output.show_json({each.name: {"value": each.value, "source": each.source} for each in used})
        return
    rows = [(f"ha_beat_{each.name}", _value(each.value), each.source) for each in used]
    if not cluster.settings.redis_url:
        broker = ("ha_beat_redis_url", f"the broker: {cluster.redis_name}", "default")
        rows = [broker if row[0] == broker[0] else row for row in rows]
    output.show_table(("SETTING", "VALUE", "SET BY"), rows)


def _value(value: object) -> str:
    match value:
        case Mapping() | list():
            return json.dumps(value)
        case None | bool():
            return str(value).lower()
        case float():
            return f"{value:.10g}"
        case _:
            return str(value)


_MARKS = {
    Level.OK: ("ok  ", "green"),
    Level.NOTE: ("note", "cyan"),
    Level.WARN: ("warn", "yellow"),
    Level.FAIL: ("FAIL", "red"),
}


@click.command(
    short_help="Check settings, Redis, clocks, schedule and records.", epilog="Example: celery -A proj ha-beat doctor"
)
@json_option
@timeout_option(default=5.0)
@on_cluster
def doctor(cluster: ClusterClient, *, as_json: bool, timeout: float) -> None:
    """Check the settings, Redis, the clocks, the schedule and the cluster's records.

    Exits with 1 if a check fails. Warnings do not change the exit status.
    """
    findings = examine(cluster, timeout)
    if str(cluster.app.conf.beat_scheduler or "").startswith("ha_beat.redbeat"):
        from ha_beat.redbeat.doctor import check_redbeat

        findings.append(check_redbeat(cluster.app, cluster.settings.command_timeout))
    if as_json:
        output.show_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark, colour = _MARKS[finding.level]
            output.show_hanging(click.style(mark, fg=colour), f"{finding.subject}: {finding.text}")
    if any(finding.level is Level.FAIL for finding in findings):
        click.get_current_context().exit(FAILED)
