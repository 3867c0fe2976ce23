"""Commands that change the cluster. Each is a request, which the leader carries out once or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import click

from ha_beat.cli import output
from ha_beat.cli.command import CommandFailed, CommandUnavailable, ask, find_member, leader_text, on_cluster
from ha_beat.cli.options import INSTANT, json_option, timeout_option
from ha_beat.client import ClusterClient
from ha_beat.clock import to_micros
from ha_beat.monitoring.request_wording import instant_text, reply_text
from ha_beat.monitoring.wording import health
from ha_beat.reasons import BackfillOutcome, ReplyCode, RequestKind
from ha_beat.store.request_queue import Reply

_timeout_option = timeout_option(note="; without an answer the request is withdrawn")

_NEED_FORCE = frozenset({BackfillOutcome.OUTCOME_UNKNOWN, BackfillOutcome.NOT_IN_JOURNAL})


def _show(reply: Reply, *, as_json: bool, leader: str = "", note: str = "") -> None:
    """Print an answer and the leader: ``leader``, or else the replica that answered.

    ``note`` replaces the line about the leader.

    Raises:
        CommandFailed: the request was refused.
    """
    line, leader = reply_text(reply.code, reply.data), leader or reply.leader
    note = note or f"{leader} leads"
    if as_json:
        output.show_json({"ok": reply.ok, "code": reply.code, "line": line, "leader": leader, **reply.data})
        if not reply.ok:
            raise click.exceptions.Exit(1)
        return
    if not reply.ok:
        raise CommandFailed(f"{line} ({note})")
    click.echo(line)
    click.echo(note)


def _explained(reply: Reply) -> Reply:
    """Mark a refusal for an unknown entry if a disabled task of django-celery-beat has its name."""
    if reply.code != ReplyCode.NO_SUCH_ENTRY:
        return reply
    # The project may use neither Django nor a database, or the database may be unreachable.
    with suppress(Exception):
        from ha_beat.django.queries import is_disabled

        if is_disabled(str(reply.data["entry"])):
            return replace(reply, data={**reply.data, "disabled": True})
    return reply


def _ask_and_show(cluster: ClusterClient, kind: RequestKind, timeout: float, *, as_json: bool, **args: str) -> None:
    _show(_explained(ask(cluster, kind, timeout, **args)), as_json=as_json)


@click.command("step-down", epilog="Example: celery -A proj ha-beat step-down --to web-2")
@click.option("--to", metavar="REPLICA", help="Replica that leads next: its id, the start of its id, or its host.")
@_timeout_option
@json_option
@on_cluster
def step_down(cluster: ClusterClient, *, to: str | None, timeout: float, as_json: bool) -> None:
    """Make another replica the leader."""
    preferred = ""
    if to is not None:
        member = find_member(cluster.view().members, to)
        if member.not_ready:
            raise CommandUnavailable(f"{member.id} is not ready to lead: {'; '.join(health(member.not_ready))}")
        preferred = member.id
    reply = ask(cluster, RequestKind.STEP_DOWN, timeout, to=preferred)
    if not reply.ok:
        _show(reply, as_json=as_json)
        return
    line = reply_text(reply.code, reply.data)
    deadline = cluster.clock.elapsed() + timeout
    while cluster.clock.elapsed() < deadline:
        leader = cluster.view().leader
        if leader is not None and leader.epoch > reply.epoch:
            note = f"{leader.holder} leads now, in epoch {leader.epoch}"
            if preferred and leader.holder != preferred:
                raise CommandFailed(f"{line}; {note}, not {preferred}")
            _show(reply, as_json=as_json, leader=leader.holder, note=note)
            return
        cluster.clock.sleep(0.05)
    raise CommandFailed(f"{line}, but no replica has taken over yet ({leader_text(cluster.view())})")


@click.command(
    short_help="Pause the schedule, or one entry.",
    epilog='Example: celery -A proj ha-beat pause nightly-report --reason "wrong figures"',
)
@click.argument("entry", required=False)
@click.option("--reason", default="", help="Reason that logs and status show.")
@_timeout_option
@json_option
@on_cluster
def pause(cluster: ClusterClient, *, entry: str | None, reason: str, timeout: float, as_json: bool) -> None:
    """Pause the schedule, or only ENTRY, until `resume`. A change of leader does not end the pause."""
    if entry is None:
        _ask_and_show(cluster, RequestKind.PAUSE, timeout, as_json=as_json, reason=reason[:500])
    else:
        _ask_and_show(cluster, RequestKind.PAUSE_ENTRY, timeout, as_json=as_json, entry=entry, reason=reason[:500])


@click.command(epilog="Example: celery -A proj ha-beat resume nightly-report")
@click.argument("entry", required=False)
@_timeout_option
@json_option
@on_cluster
def resume(cluster: ClusterClient, *, entry: str | None, timeout: float, as_json: bool) -> None:
    """End the pause of the cluster, or of ENTRY.

    The misfire policy decides about occurrences that fell due during the cluster's pause. Those of a paused entry were
    skipped and are not caught up.
    """
    if entry is None:
        _ask_and_show(cluster, RequestKind.RESUME, timeout, as_json=as_json)
    else:
        _ask_and_show(cluster, RequestKind.RESUME_ENTRY, timeout, as_json=as_json, entry=entry)


@click.command(epilog="Example: celery -A proj ha-beat run nightly-report")
@click.argument("entry")
@_timeout_option
@json_option
@on_cluster
def run(cluster: ClusterClient, *, entry: str, timeout: float, as_json: bool) -> None:
    """Enqueue ENTRY's task once, now. Its schedule does not change, and a pause does not prevent it."""
    _ask_and_show(cluster, RequestKind.RUN, timeout, as_json=as_json, entry=entry)


@click.command(
    epilog="Example: celery -A proj ha-beat backfill nightly-report --from 2026-03-01 --to 2026-03-04 --dry-run"
)
@click.argument("entry")
@click.option("--from", "since", type=INSTANT, required=True, help="Start of the period; UTC unless it has an offset.")
@click.option("--to", "until", type=INSTANT, required=True, help="End of the period, which is not included.")
@click.option("--dry-run", is_flag=True, help="Only show what would be enqueued.")
@click.option("--force", is_flag=True, help="Also enqueue instants that may have been enqueued before.")
@_timeout_option
@json_option
@on_cluster
def backfill(
    cluster: ClusterClient,
    *,
    entry: str,
    since: datetime,
    until: datetime,
    dry_run: bool,
    force: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Enqueue past instants of ENTRY that were skipped.

    Covers at most 1,000 due instants. An instant that the journal shows as enqueued is never sent again. Each message
    has the id and the header that it would have had at its instant.
    """
    if until <= since:
        raise CommandUnavailable("--to must be later than --from")
    period = {"from": to_micros(since), "to": to_micros(until)}
    reply = _explained(ask(cluster, RequestKind.BACKFILL, timeout, entry=entry, **period, dry_run=dry_run, force=force))
    instants = reply.data.get("instants")
    if instants and not as_json:
        _show_instants(instants)
    _show(reply, as_json=as_json)


def _show_instants(instants: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for each in instants:
        state, why = instant_text(each)
        rows.append((output.second(datetime.fromisoformat(each["at"])), state, each["task_id"], why))
    output.show_table(("DUE", "STATE", "TASK ID", "WHY"), rows, spare=("TASK ID",))
    unproven = sum(each["outcome"] in _NEED_FORCE for each in instants)
    if unproven:
        click.echo(f"{unproven} may have been enqueued before; --force enqueues them too")
