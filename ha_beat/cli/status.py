"""Commands `status` and `check`: the state of the cluster, for people and for probes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import click

from ha_beat.celery_app import fingerprint
from ha_beat.cli import output
from ha_beat.cli.command import (
    CommandFailed,
    CommandUnavailable,
    find_member,
    leader_text,
    on_cluster,
    store_error_text,
)
from ha_beat.cli.options import json_option
from ha_beat.client import ClusterClient
from ha_beat.errors import StoreError
from ha_beat.monitoring.request_wording import pause_text
from ha_beat.monitoring.status import cluster_document, spans, unattended
from ha_beat.monitoring.wording import duration, entries_text, health, phrase
from ha_beat.store import entry_pauses
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import TermRecord, VerdictRecord
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView, Member

#: Seconds that an occurrence may be overdue before `check` fails.
_OVERDUE = 60.0

#: Seconds that `check` waits for a new leader to load the schedule, besides its pause after a failover of Redis.
_TAKE_UP_WITHIN = 5.0


@click.command(epilog="Example: celery -A proj ha-beat status --watch")
@json_option
@click.option("--watch", is_flag=True, help="Repeat every --interval seconds, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    metavar="SECONDS",
    default=2.0,
    show_default=True,
    help="Time between two updates of --watch.",
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
        _show(cluster, as_json=as_json)
        return
    with suppress(KeyboardInterrupt):
        while True:
            _show_again(cluster, as_json=as_json)
            cluster.clock.sleep(interval)


def _show_again(cluster: ClusterClient, *, as_json: bool) -> None:
    """Replace what the terminal shows by the present state, or by why Redis failed."""
    try:
        _show(cluster, as_json=as_json, clear=True)
    except StoreError as exc:
        if not as_json:
            click.clear()
        click.echo(store_error_text(cluster, exc), err=as_json)
    if not as_json:
        click.echo()


def _show(cluster: ClusterClient, *, as_json: bool, clear: bool = False) -> None:
    view, records = cluster.view(), cluster.journal.newest(200)
    terms = [record for record in records if isinstance(record, TermRecord)][:5]
    if as_json:
        recent = (record for record in records if isinstance(record, VerdictRecord))
        name = cluster.settings.cluster
        output.show_json(cluster_document(name, view, recent, spans(terms[::-1], view.lease)))
        return
    fields = [*_cluster_fields(cluster, view), *_schedule_fields(cluster, view)]
    if clear:
        # Not before everything is read, which may take long or fail.
        click.clear()
    output.show_fields(fields)
    click.echo()
    _show_tables(view, terms)


def _pause_of(view: ClusterView) -> Pause | None:
    return Pause.parse(view.paused) if view.paused else None


def _show_tables(view: ClusterView, terms: list[TermRecord]) -> None:
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
        yield "schedule", f"not loaded by a leader{_unattended_text(cluster, view)}"
    if leader is None:
        return
    late = f", the oldest {duration(leader.overdue_ms / 1000)} late" if leader.overdue_ms else ""
    yield "schedule", f"{entries_text(leader.entries)}, {leader.backlog} due{late}"
    for upcoming in leader.upcoming[:1]:
        # The record is up to two seconds old: an entry that fell due after it was written is not overdue.
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
@click.option("--replica", metavar="NAME", help="Only check that this replica is alive and ready to lead.")
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
    if view.leader is not None and not _leads_another_app(cluster, view.leader):
        view = _await_taking_up(cluster, view)
    problem, pause = _problem(cluster, view), _pause_of(view)
    if problem:
        raise CommandFailed(problem)
    click.echo(leader_text(view) + (f"; paused {pause_text(pause)}" if pause else ""))


def _problem(cluster: ClusterClient, view: ClusterView) -> str:
    """Return why no leader keeps up with the schedule, empty if one does."""
    leader, member = view.leader, view.leading_member
    if leader is None:
        return leader_text(view)
    if _leads_another_app(cluster, leader):
        app = fingerprint(cluster.app)
        return f"{leader.holder} leads for another app: {leader.fingerprint!r}, while this one is {app!r}"
    if member is None or not member.taken_up:
        return f"{leader.holder} leads, but has not loaded the schedule{_unattended_text(cluster, view)}"
    if member.not_ready:
        return f"{leader.holder} leads, but is not ready: {'; '.join(health(member.not_ready))}"
    if member.overdue_ms > _OVERDUE * 1000 and not view.paused:
        return f"{leader.holder} leads, but is {duration(member.overdue_ms / 1000)} behind the schedule"
    return ""


def _leads_another_app(cluster: ClusterClient, leader: LeaseRecord) -> bool:
    return leader.fingerprint not in {"", fingerprint(cluster.app)}


def _members_named(view: ClusterView, replica: str | None) -> list[Member]:
    """Return the replica with this name, or all on this host."""
    host = socket.gethostname()
    found = [] if replica else [member for member in view.members if member.host == host]
    try:
        return found or [find_member(view.members, replica or host)]
    except CommandUnavailable as exc:
        raise CommandFailed(exc.message) from exc


def _await_taking_up(cluster: ClusterClient, view: ClusterView) -> ClusterView:
    """Return the view once a leader has loaded the schedule or reports why it can't, else the last view.

    A new leader needs a moment. After a failover of Redis it waits on purpose until the previous leader has stopped.
    """
    until = cluster.clock.elapsed() + cluster.settings.lease_ttl + _TAKE_UP_WITHIN
    while not view.taken_up and cluster.clock.elapsed() < until:
        if view.leading_member is not None and view.leading_member.not_ready:
            break
        cluster.clock.sleep(0.25)
        view = cluster.view()
    return view


def _unattended_text(cluster: ClusterClient, view: ClusterView) -> str:
    """Return how many entries are due by the ledger, empty if none is."""
    found = unattended(cluster.ledger.read(), view.server_ms)
    late = duration(found.overdue(view.server_ms))
    return f"; {entries_text(found.due)} due, the oldest {late} late" if found.due else ""
