"""The commands that only look."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime

import click

from ha_beat.celery_app import broker_client, fingerprint, lease_redis_name
from ha_beat.cli import output
from ha_beat.cli.cluster import (
    NOT_WELL,
    CantTell,
    NotWell,
    ask,
    find_member,
    leadership_in_words,
    nearest,
    on_cluster,
)
from ha_beat.cli.times import INSTANT
from ha_beat.client import ClusterClient
from ha_beat.errors import StoreError
from ha_beat.monitoring.doctor import Examination
from ha_beat.monitoring.request_wording import pause_text, reply_text
from ha_beat.monitoring.status import cluster_document, spans
from ha_beat.monitoring.wording import health, phrase
from ha_beat.reasons import RequestKind
from ha_beat.store.journal import Record, TermRecord, VerdictRecord
from ha_beat.store.membership import ClusterView
from ha_beat.store.request_queue import Pause

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=15.0,
    show_default=True,
    help="Seconds to wait for the leader's answer.",
)

#: How Celery shows its schedules: ``<crontab: 0 4 * * * (m/h/dM/MY/d)>``.
_CELERYS_REPR = re.compile(r"^<(.*?)(?: \(m/h/dM/MY/d\))?>$")

#: Seconds that the leader may be behind before `check` says so.
_OVERDUE = 60.0


@click.command(epilog="Example: celery -A proj ha-beat status --watch")
@_JSON
@click.option("--watch", is_flag=True, help="Show it again every --interval seconds, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two looks, with --watch.",
)
@on_cluster
def status(cluster: ClusterClient, *, as_json: bool, watch: bool, interval: float) -> None:
    """Show who leads, the replicas, and how the schedule fares."""
    if not watch:
        _look(cluster, as_json=as_json)
        return
    with suppress(KeyboardInterrupt):
        while True:
            try:
                _look(cluster, as_json=as_json, watch=True)
            except StoreError as exc:
                # An outage is what one watches for.
                _clear(as_json=as_json)
                click.echo(f"Redis can't be asked at {cluster.redis_name}: {exc}", err=as_json)
            if not as_json:
                click.echo()
            cluster.clock.sleep(interval)


def _clear(*, as_json: bool) -> None:
    if output.to_terminal() and not as_json:
        click.clear()


def _look(cluster: ClusterClient, *, as_json: bool, watch: bool = False) -> None:
    view, records = cluster.view(), cluster.journal.newest(200)
    terms = [record for record in records if isinstance(record, TermRecord)][:5]
    if watch:
        _clear(as_json=as_json)
    if as_json:
        recent = (record for record in records if isinstance(record, VerdictRecord))
        name = cluster.settings.cluster
        output.show_json(cluster_document(name, view, recent, spans(terms[::-1], view.lease)))
    else:
        _show_status(cluster, view, terms)


def _pause_of(view: ClusterView) -> Pause | None:
    return Pause.parse(view.paused) if view.paused else None


def _show_status(cluster: ClusterClient, view: ClusterView, terms: list[TermRecord]) -> None:
    leader, pause = view.leader, _pause_of(view)
    now = view.server_ms
    fields: list[tuple[str, object]] = [("cluster", cluster.settings.cluster), ("leader", leadership_in_words(view))]
    if leader is not None:
        led_for = output.lasting((now - leader.since_ms) / 1000)
        heard = output.lasting(leader.silent_ms(now) / 1000)
        fields[-1] = ("leader", f"{leader.holder}, for {led_for} (epoch {leader.epoch}, renewed {heard} ago)")
    fields.append(("paused", pause_text(pause) if pause else "no"))
    leading = next((member for member in view.members if member.role == "leader"), None)
    if leading is not None:
        late = f", the oldest {output.lasting(leading.overdue_ms / 1000)} late" if leading.overdue_ms else ""
        fields.append(("schedule", f"{leading.entries} entries, {leading.backlog} due now{late}"))
        if leading.upcoming:
            soon = leading.upcoming[0]
            wait = (soon.at_ms - now) / 1000
            fields.append(("next", f"{soon.entry} in {output.lasting(wait)}" if wait > 0 else f"{soon.entry}, due now"))
        fields += [("failing", f"{entry}: {why}") for entry, why in leading.failing.items()]
    output.show_fields(fields)
    click.echo()
    rows = [
        (
            member.id,
            member.role,
            member.host,
            member.pid,
            member.version,
            output.lasting((now - member.since_ms) / 1000),
            f"{output.lasting((now - member.seen_ms) / 1000)} ago",
            member.http or "-",
            "; ".join(health(member.not_ready)) or "yes",
        )
        for member in view.members
    ]
    if rows:
        columns = ("REPLICA", "ROLE", "HOST", "PID", "VERSION", "UP FOR", "SEEN", "HTTP", "READY")
        output.show_table(columns, rows, spare=("VERSION", "PID", "HTTP", "HOST"))
    else:
        click.echo("No replica is alive under this cluster name on this Redis.")
    if terms:
        click.echo()
        output.show_table(
            ("CHANGE OF LEADER", "REPLICA", "EPOCH", "WHY"),
            [
                (f"{output.instant(term.ms)} {term.event}", term.by, term.epoch, phrase(term.reason, term.detail))
                for term in terms
            ],
            spare=("EPOCH",),
        )


@click.command(
    short_help="Tell by the exit status whether somebody leads and keeps up.",
    epilog="Example, as an exec probe: celery -A proj ha-beat check --here",
)
@click.option("--replica", metavar="NAME", help="Check that this replica is alive and could lead, not the cluster.")
@click.option("--here", is_flag=True, help="The same, for the replica on this host.")
@on_cluster
def check(cluster: ClusterClient, *, replica: str | None, here: bool) -> None:
    """Exit with 0 if somebody leads and keeps up, with 1 if not, with 2 if Redis can't be asked."""
    view = cluster.view()
    if replica or here:
        name = replica or socket.gethostname()
        try:
            member = find_member(view.members, name)
        except CantTell as exc:
            raise NotWell(exc.message) from exc
        if member.not_ready:
            raise NotWell(f"{member.id} is not ready: {'; '.join(health(member.not_ready))}")
        click.echo(f"{member.id} is alive ({member.role})")
        return
    leader = view.leader
    if leader is None:
        raise NotWell(leadership_in_words(view))
    leading = next((member for member in view.members if member.role == "leader"), None)
    paused = _pause_of(view)
    if leading is not None and leading.overdue_ms > _OVERDUE * 1000 and paused is None:
        raise NotWell(f"{leader.holder} leads, but is {output.lasting(leading.overdue_ms / 1000)} behind the schedule")
    click.echo(f"{leader.holder} leads" + (f"; paused {pause_text(paused)}" if paused else ""))


@click.command(
    short_help="Show what became of each occurrence, and who led.",
    epilog="Example: celery -A proj ha-beat history nightly-report --since 2026-03-01",
)
@click.argument("entry", required=False)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Show at most so many, the newest."
)
@click.option("--since", type=INSTANT, help="Only what was recorded since then.")
@click.option(
    "--verdict", type=click.Choice(["enqueued", "skipped", "uncertain"]), help="Only occurrences with this verdict."
)
@_JSON
@on_cluster
def history(
    cluster: ClusterClient, *, entry: str | None, limit: int, since: datetime | None, verdict: str | None, as_json: bool
) -> None:
    """Show what became of every occurrence (of ENTRY), and every change of leader, the newest first."""
    found: list[Record] = []
    for record in cluster.journal.between(since):
        if entry is not None and entry not in {record.data.get("entry"), record.data.get("name")}:
            continue
        if verdict is not None and not (isinstance(record, VerdictRecord) and record.verdict == verdict):
            continue
        found.append(record)
        if len(found) >= limit:
            break
    if not found and entry is not None:
        known = {*cluster.ledger.read(), *_names(cluster)}
        if entry not in known:
            raise NotWell(f"neither the journal nor the ledger knows an entry {entry!r}{nearest(entry, known)}")
    if as_json:
        output.show_json([{"n": record.n, "kind": record.kind, **record.data} for record in found])
        return
    if not found:
        click.echo("The journal has no such record.")
        return
    rows = [_line(record) for record in found]
    columns = ("RECORDED", "WHAT", "ENTRY", "DUE", "LATE", "BY", "EPOCH", "DETAIL")
    output.show_table(columns, rows, spare=("EPOCH", "BY"))


def _names(cluster: ClusterClient) -> set[str]:
    """What people call the entries, as the leader has them; none where nobody answers."""
    try:
        reply = ask(cluster, RequestKind.NEXT, 3.0, limit=1000)
    except click.ClickException:
        return set()
    return {str(line["name"]) for line in reply.data["entries"]} if reply.ok else set()


def _line(record: Record) -> tuple[object, ...]:
    recorded = output.instant(record.ms)
    if isinstance(record, TermRecord):
        return recorded, record.event, "", "", "", record.by, record.epoch, phrase(record.reason, record.detail)
    if isinstance(record, VerdictRecord):
        what = record.verdict if record.kind == "occurrence" else f"{record.verdict} ({record.kind})"
        meant, late, detail = (
            f"{record.first:%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z",
            "",
            ": ".join(filter(None, (record.reason, record.detail))),
        )
        if record.verdict == "skipped":
            many = record.count if record.count >= 0 else "many"
            detail = f"{many} until {record.until:%Y-%m-%d %H:%M:%S}Z: {detail}" if many != 1 else detail
        elif record.kind == "occurrence":
            late = output.lasting(record.lateness)
        if record.task_id:
            detail = f"{record.task_id} {detail}".strip()
        return recorded, what, record.label, meant, late, record.by, record.epoch, detail
    data = record.data
    count = f"{data['count']} of {data['of']}" if "of" in data else ""
    detail = " ".join(str(part) for part in (data.get("why"), count, data.get("asked_by")) if part)
    return (
        recorded,
        data.get("event", record.kind),
        data.get("name") or data.get("entry", ""),
        "",
        "",
        record.by,
        record.epoch,
        detail,
    )


@click.command("next", epilog="Example: celery -A proj ha-beat next --limit 5")
@click.argument("entry", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Show at most so many.")
@_TIMEOUT
@_JSON
@on_cluster
def next_(cluster: ClusterClient, *, entry: str | None, limit: int, timeout: float, as_json: bool) -> None:
    """Show what is due next, as the leader has it on its agenda."""
    reply = ask(cluster, RequestKind.NEXT, timeout, limit=limit, entry=entry or "")
    if not reply.ok:
        raise NotWell(reply_text(reply.code, reply.data))
    entries = reply.data["entries"]
    if as_json:
        output.show_json(entries)
        return
    now = cluster.clock.wall()
    rows = []
    for line in entries:
        due = datetime.fromisoformat(line["due"]) if line["due"] else None
        wait = "?" if due is None else output.lasting(due.timestamp() - now)
        when = f"{due:%Y-%m-%d %H:%M:%S}Z" if due else "its schedule is asked each time"
        last = f"{datetime.fromisoformat(line['last']):%Y-%m-%d %H:%M:%S}Z" if line["last"] else "-"
        schedule = _CELERYS_REPR.sub(r"\1", line["schedule"])
        rows.append((line["name"], when, wait, last, line["run_count"], line["task"], schedule))
    output.show_table(("ENTRY", "DUE", "IN", "LAST", "RUNS", "TASK", "SCHEDULE"), rows, spare=("RUNS", "LAST", "TASK"))


@click.command(
    short_help="Show every setting, its value and where it was set.",
    epilog="Example: celery -A proj ha-beat settings --changed",
)
@_JSON
@click.option("--changed", is_flag=True, help="Only those that do not have their default.")
@on_cluster
def settings(cluster: ClusterClient, *, as_json: bool, changed: bool) -> None:
    """Show every setting with its value here and where it was set; secrets are hidden."""
    used = [each for each in cluster.settings.describe() if not (changed and each.is_default)]
    if as_json:
        output.show_json({each.name: {"value": each.value, "source": each.source} for each in used})
        return
    rows = [(f"ha_beat_{each.name}", _value(each.value), each.source) for each in used]
    if not cluster.settings.redis_url:
        broker = ("ha_beat_redis_url", f"the broker's: {cluster.redis_name}", "default")
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


_MARKS = {"ok": ("ok  ", "green"), "note": ("note", "cyan"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command(
    short_help="Examine settings, Redis, clocks, schedule and records.", epilog="Example: celery -A proj ha-beat doctor"
)
@_JSON
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds to wait for the leader."
)
@on_cluster
def doctor(cluster: ClusterClient, *, as_json: bool, timeout: float) -> None:
    """Examine the settings, Redis, the clocks, the schedule and what the cluster has recorded.

    Exits with 1 if something fails; warnings alone leave 0.
    """
    examination = Examination(
        app=cluster.app,
        settings=cluster.settings,
        client=cluster.client,
        keys=cluster.keys,
        members=cluster.members,
        journal=cluster.journal,
        requests=cluster.requests,
        clock=cluster.clock,
        fingerprint=fingerprint(cluster.app),
        timeout=timeout,
        broker=broker_client(cluster.app, cluster.settings),
        store_name=lease_redis_name(cluster.app, cluster.settings),
    )
    findings = examination.findings()
    if as_json:
        output.show_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark, colour = _MARKS[finding.level]
            output.show_hanging(click.style(mark, fg=colour), f"{finding.subject}: {finding.text}")
    if any(finding.level == "fail" for finding in findings):
        click.get_current_context().exit(NOT_WELL)


COMMANDS = (status, check, history, next_, settings, doctor)
