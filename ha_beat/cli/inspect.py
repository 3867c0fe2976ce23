"""Commands that change nothing."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime

import click

from ha_beat.celery_app import fingerprint
from ha_beat.cli import output
from ha_beat.cli.command import (
    FAILED,
    CommandFailed,
    CommandUnavailable,
    ask,
    find_member,
    leader_text,
    on_cluster,
    store_error_text,
)
from ha_beat.cli.options import json_option, timeout_option
from ha_beat.client import ClusterClient
from ha_beat.errors import StoreError
from ha_beat.monitoring.doctor import examine
from ha_beat.monitoring.request_wording import pause_text, reply_text
from ha_beat.monitoring.status import cluster_document, spans, unattended
from ha_beat.monitoring.wording import duration, entries_text, health, phrase
from ha_beat.reasons import Level, RequestKind
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import TermRecord, VerdictRecord
from ha_beat.store.membership import ClusterView, Member

#: Form in which Celery shows a schedule: ``<crontab: 0 4 * * * (m/h/dM/MY/d)>``.
_SCHEDULE = re.compile(r"^<(.*?)(?: \(m/h/dM/MY/d\))?>$")

#: Seconds that an occurrence may be overdue before `check` fails.
_OVERDUE = 60.0

#: Seconds that `check` waits for a new leader to take up the schedule, besides its pause after a failover of Redis.
_TAKE_UP_WITHIN = 5.0


@click.command(epilog="Example: celery -A proj ha-beat status --watch")
@json_option
@click.option("--watch", is_flag=True, help="Repeat every --interval seconds, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two updates of --watch.",
)
@click.option("--leader-host", is_flag=True, help="Print only the host of the leader, for scripts.")
@on_cluster
def status(cluster: ClusterClient, *, as_json: bool, watch: bool, interval: float, leader_host: bool) -> None:
    """Show the leader, the replicas and the state of the schedule."""
    if leader_host:
        view = cluster.view()
        if view.leader is None:
            raise CommandFailed(leader_text(view))
        click.echo(view.leader.host)
        return
    if not watch:
        _show_once(cluster, as_json=as_json)
        return
    with suppress(KeyboardInterrupt):
        while True:
            try:
                _show_once(cluster, as_json=as_json, watch=True)
            except StoreError as exc:
                _clear(as_json=as_json)
                click.echo(store_error_text(cluster, exc), err=as_json)
            if not as_json:
                click.echo()
            cluster.clock.sleep(interval)


def _clear(*, as_json: bool) -> None:
    if output.to_terminal() and not as_json:
        click.clear()


def _show_once(cluster: ClusterClient, *, as_json: bool, watch: bool = False) -> None:
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
    output.show_fields([*_cluster_fields(cluster, view), *_schedule_fields(cluster, view)])
    click.echo()
    rows = [_member_row(member, view.server_ms) for member in view.members]
    if rows:
        columns = ("REPLICA", "ROLE", "HOST", "PID", "VERSION", "UP FOR", "SEEN", "HTTP", "READY")
        output.show_table(columns, rows, spare=("VERSION", "PID", "HTTP", "HOST"))
    else:
        click.echo("No replica of this cluster is alive on this Redis.")
    if terms:
        click.echo()
        changes = [
            (f"{output.instant(term.ms)} {term.event}", term.by, term.epoch, phrase(term.reason, term.detail))
            for term in terms
        ]
        output.show_table(("CHANGE OF LEADER", "REPLICA", "EPOCH", "WHY"), changes, spare=("EPOCH",))


def _cluster_fields(cluster: ClusterClient, view: ClusterView) -> Iterator[tuple[str, object]]:
    leader, pause, now = view.leader, _pause_of(view), view.server_ms
    yield "cluster", cluster.settings.cluster
    if leader is None:
        yield "leader", leader_text(view)
    else:
        led_for = duration((now - leader.since_ms) / 1000)
        renewed = duration(leader.silent_ms(now) / 1000)
        yield "leader", f"{leader.holder}, for {led_for} (epoch {leader.epoch}, renewed {renewed} ago)"
    yield "paused", pause_text(pause) if pause else "no"
    for entry, each in entry_pauses.in_force(view.paused_entries).items():
        yield "paused", f"{each['name'] or entry}, {pause_text(Pause.of(each))}"


def _schedule_fields(cluster: ClusterClient, view: ClusterView) -> Iterator[tuple[str, object]]:
    leader = view.leading_member
    if leader is None or not leader.taken_up:
        yield "schedule", f"not taken up by a leader{_unattended_text(cluster, view)}"
    if leader is None:
        return
    late = f", the oldest {duration(leader.overdue_ms / 1000)} late" if leader.overdue_ms else ""
    yield "schedule", f"{entries_text(leader.entries)}, {leader.backlog} due{late}"
    for upcoming in leader.upcoming[:1]:
        # The record is up to two seconds old. An entry that fell due since then has run, as far as is known.
        wait = max(0.0, (upcoming.at_ms - view.server_ms) / 1000)
        overdue = upcoming.at_ms <= leader.seen_ms
        yield "next", f"{upcoming.entry}, due now" if overdue else f"{upcoming.entry} in {duration(wait)}"
    yield from (("failing", f"{entry}: {why}") for entry, why in leader.failing.items())


def _member_row(member: Member, now_ms: int) -> tuple[object, ...]:
    return (
        member.id,
        member.role,
        member.host,
        member.pid,
        member.version,
        duration((now_ms - member.since_ms) / 1000),
        f"{duration((now_ms - member.seen_ms) / 1000)} ago",
        member.http or "-",
        "; ".join(health(member.not_ready)) or "yes",
    )


@click.command(
    short_help="Exit with 0 if a leader keeps up with the schedule.",
    epilog="Example, as an exec probe: celery -A proj ha-beat check --here",
)
@click.option("--replica", metavar="NAME", help="Check instead that this replica is alive and ready to lead.")
@click.option("--here", is_flag=True, help="Like --replica, for every replica on this host.")
@on_cluster
def check(cluster: ClusterClient, *, replica: str | None, here: bool) -> None:
    """Exit with 0 if a leader is ready and keeps up with the schedule, 1 if not, 2 if Redis is unavailable."""
    view = cluster.view()
    if replica or here:
        for member in _members_named(view, replica):
            if member.not_ready:
                raise CommandFailed(f"{member.id} is not ready: {'; '.join(health(member.not_ready))}")
            click.echo(f"{member.id} is alive ({member.role})")
        return
    leader = view.leader
    if leader is None:
        raise CommandFailed(leader_text(view))
    app = fingerprint(cluster.app)
    if leader.fingerprint not in {"", app}:
        raise CommandFailed(f"{leader.holder} leads for another app: {leader.fingerprint!r}, while this one is {app!r}")
    view = _await_taking_up(cluster, view)
    leader, leading, paused = view.leader, view.leading_member, _pause_of(view)
    if leader is None:
        raise CommandFailed(leader_text(view))
    if leading is None or not leading.taken_up:
        raise CommandFailed(
            f"{leader.holder} leads, but has not taken up the schedule{_unattended_text(cluster, view)}"
        )
    if leading.not_ready:
        raise CommandFailed(f"{leader.holder} leads, but is not ready: {'; '.join(health(leading.not_ready))}")
    if leading.overdue_ms > _OVERDUE * 1000 and paused is None:
        raise CommandFailed(f"{leader.holder} leads, but is {duration(leading.overdue_ms / 1000)} behind the schedule")
    click.echo(f"{leader.holder} leads" + (f"; paused {pause_text(paused)}" if paused else ""))


def _members_named(view: ClusterView, replica: str | None) -> list[Member]:
    """Return the replica with this name, or all on this host."""
    host = socket.gethostname()
    found = [] if replica else [member for member in view.members if member.host == host]
    try:
        return found or [find_member(view.members, replica or host)]
    except CommandUnavailable as exc:
        raise CommandFailed(exc.message) from exc


def _await_taking_up(cluster: ClusterClient, view: ClusterView) -> ClusterView:
    """Return the view once a leader has taken up the schedule, or says why it can't.

    A new leader needs a moment, and after a failover of Redis it waits on purpose until the previous one has stopped.
    """
    until = cluster.clock.elapsed() + cluster.settings.lease_ttl + _TAKE_UP_WITHIN
    while not view.taken_up and cluster.clock.elapsed() < until:
        if view.leading_member is not None and view.leading_member.not_ready:
            break
        cluster.clock.sleep(0.25)
        view = cluster.view()
    return view


def _unattended_text(cluster: ClusterClient, view: ClusterView) -> str:
    """Return what is due while no leader has it on its queue."""
    found = unattended(cluster.ledger.read(), view.server_ms)
    late = duration(found.overdue(view.server_ms))
    return f"; {found.due} due, the oldest {late} late" if found.due else ""


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


COMMANDS = (status, check, next_, settings, doctor)
