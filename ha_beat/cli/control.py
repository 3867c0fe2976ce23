"""The commands that change something. Each is a request to the leader, which carries it out once or not at all."""

from __future__ import annotations

from datetime import datetime

import click

from ha_beat.cli import output
from ha_beat.cli.cluster import CantTell, NotWell, ask, find_member, leadership_in_words, on_cluster
from ha_beat.cli.times import INSTANT
from ha_beat.client import ClusterClient
from ha_beat.clock import to_micros
from ha_beat.monitoring.request_wording import instant_text, reply_text
from ha_beat.monitoring.wording import health
from ha_beat.reasons import BackfillOutcome, RequestKind
from ha_beat.store.request_queue import Reply

_TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=15.0,
    show_default=True,
    help="Seconds to wait for the leader's answer; without one, nothing is done.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _say(reply: Reply, *, as_json: bool, leads: str) -> None:
    """What was done, and who leads now."""
    line = reply_text(reply.code, reply.data)
    if as_json:
        output.show_json({"ok": reply.ok, "code": reply.code, "line": line, "leader": leads, **reply.data})
        if not reply.ok:
            raise click.exceptions.Exit(1)
        return
    if not reply.ok:
        raise NotWell(f"{line} ({leads})")
    click.echo(line)
    click.echo(leads)


@click.command("step-down", epilog="Example: celery -A proj ha-beat step-down --to web-2")
@click.option("--to", metavar="REPLICA", help="The replica to lead next: its id, how the id begins, or its host.")
@_TIMEOUT
@_JSON
@on_cluster
def step_down(cluster: ClusterClient, *, to: str | None, timeout: float, as_json: bool) -> None:
    """Have the leader hand over to another replica."""
    view = cluster.view()
    preferred = ""
    if to is not None:
        member = find_member(view.members, to)
        if member.not_ready:
            raise CantTell(f"{member.id} could not lead: {'; '.join(health(member.not_ready))}")
        preferred = member.id
    reply = ask(cluster, RequestKind.STEP_DOWN, timeout, to=preferred)
    if not reply.ok:
        _say(reply, as_json=as_json, leads=leadership_in_words(cluster.view()))
        return
    until = cluster.clock.elapsed() + timeout
    while cluster.clock.elapsed() < until:
        view = cluster.view()
        leader = view.leader
        if leader is not None and leader.epoch > reply.epoch:
            now = f"{leader.holder} leads now, in epoch {leader.epoch}"
            if preferred and leader.holder != preferred:
                raise NotWell(f"{reply_text(reply.code, reply.data)}; {now}, not {preferred}")
            _say(reply, as_json=as_json, leads=now)
            return
        cluster.clock.sleep(0.05)
    raise NotWell(f"{reply_text(reply.code, reply.data)}, but nobody has taken over yet ({leadership_in_words(view)})")


@click.command(epilog='Example: celery -A proj ha-beat pause --reason "database upgrade"')
@click.option("--reason", default="", help="Why, for everybody who wonders.")
@_TIMEOUT
@_JSON
@on_cluster
def pause(cluster: ClusterClient, *, reason: str, timeout: float, as_json: bool) -> None:
    """Enqueue nothing by schedule, whoever leads, until `resume`."""
    reply = ask(cluster, RequestKind.PAUSE, timeout, reason=reason[:500])
    _say(reply, as_json=as_json, leads=f"{reply.leader} leads")


@click.command(epilog="Example: celery -A proj ha-beat resume")
@_TIMEOUT
@_JSON
@on_cluster
def resume(cluster: ClusterClient, *, timeout: float, as_json: bool) -> None:
    """End the pause. What fell due meanwhile gets its verdict by the misfire policy."""
    reply = ask(cluster, RequestKind.RESUME, timeout)
    _say(reply, as_json=as_json, leads=f"{reply.leader} leads")


@click.command(epilog="Example: celery -A proj ha-beat run nightly-report")
@click.argument("entry")
@_TIMEOUT
@_JSON
@on_cluster
def run(cluster: ClusterClient, *, entry: str, timeout: float, as_json: bool) -> None:
    """Enqueue ENTRY's task once, now. Its schedule is not affected, and a pause does not stop it."""
    reply = ask(cluster, RequestKind.RUN, timeout, entry=entry)
    _say(reply, as_json=as_json, leads=f"{reply.leader} leads")


@click.command(
    epilog="Example: celery -A proj ha-beat backfill nightly-report --from 2026-03-01 --to 2026-03-04 --dry-run"
)
@click.argument("entry")
@click.option("--from", "since", type=INSTANT, required=True, help="The first instant; UTC unless it says otherwise.")
@click.option("--to", "until", type=INSTANT, required=True, help="The instant to stop before.")
@click.option("--dry-run", is_flag=True, help="Only show what would be enqueued.")
@click.option("--force", is_flag=True, help="Also what the journal can't prove not to have been enqueued.")
@_TIMEOUT
@_JSON
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
    """Enqueue ENTRY's due instants of the past that were skipped.

    Takes those from --from up to, not including, --to: 1,000 at most. An instant that the journal shows as enqueued is
    never sent again. Each message has the id and the header that it would have had in time.
    """
    if until <= since:
        raise CantTell("--to must be later than --from")
    reply = ask(
        cluster,
        RequestKind.BACKFILL,
        timeout,
        entry=entry,
        **{"from": to_micros(since), "to": to_micros(until)},
        dry_run=dry_run,
        force=force,
    )
    if not as_json and reply.data.get("instants"):
        found = reply.data["instants"]
        words = [instant_text(each) for each in found]
        rows = [
            (_second(each["at"]), state, each["task_id"], why) for each, (state, why) in zip(found, words, strict=True)
        ]
        output.show_table(("DUE", "STATE", "TASK ID", "WHY"), rows, spare=("TASK ID",))
        unproven = sum(each["outcome"] in _NEED_FORCE for each in found)
        if unproven:
            click.echo(f"{unproven} may have been enqueued, for all that the journal knows: --force enqueues them too")
    _say(reply, as_json=as_json, leads=f"{reply.leader} leads")


_NEED_FORCE = {BackfillOutcome.OUTCOME_UNKNOWN, BackfillOutcome.NOT_IN_JOURNAL}


def _second(instant: str) -> str:
    return f"{datetime.fromisoformat(instant):%Y-%m-%d %H:%M:%S}Z"


COMMANDS = (step_down, pause, resume, run, backfill)
