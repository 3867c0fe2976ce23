"""Common parts of the commands: the app's cluster, requests to its leader, and errors as one line."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

from ha_beat.cli import output
from ha_beat.client import ClusterClient
from ha_beat.errors import ConfigurationError, HaBeatError, StoreError
from ha_beat.exception_text import exception_line
from ha_beat.monitoring.request_wording import why_free
from ha_beat.reasons import RequestKind
from ha_beat.store.membership import ClusterView, Member
from ha_beat.store.request_queue import NoAnswer, Reply
from ha_beat.suggest import did_you_mean, nearest

P = ParamSpec("P")
T = TypeVar("T")

#: Exit status: the cluster is unhealthy, or the leader refused.
FAILED = 1

#: Exit status: Redis is unavailable, or the command line or a setting is wrong.
UNAVAILABLE = 2


class CommandFailed(click.ClickException):
    """End of a command with one line and exit status 1."""

    exit_code = FAILED


class CommandUnavailable(click.ClickException):
    """End of a command with one line and exit status 2."""

    exit_code = UNAVAILABLE


def on_cluster(command: Callable[Concatenate[ClusterClient, P], T]) -> Callable[P, T]:
    """Pass the app's cluster to a command, and turn its errors into one line."""

    @click.pass_context
    def run(ctx: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> T:
        app = getattr(ctx.obj, "app", None)
        if app is None:
            raise CommandUnavailable("no app was given; use celery -A your_project ha-beat …")
        try:
            cluster = ClusterClient(app)
            try:
                return command(cluster, *args, **kwargs)
            except StoreError as exc:
                raise CommandUnavailable(store_error_text(cluster, exc)) from exc
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except ConfigurationError as exc:
            named = app.main not in (None, "default", "__main__")
            hint = "" if named else " (was the app given? celery -A your_project …)"
            raise CommandUnavailable(f"{exc}{hint}") from exc
        except HaBeatError as exc:
            raise CommandUnavailable(str(exc)) from exc
        except Exception as exc:
            raise CommandUnavailable(f"internal error: {exception_line(exc)}") from exc

    return cast("Callable[P, T]", update_wrapper(cast("Any", run), command))


def ask(cluster: ClusterClient, kind: RequestKind, timeout: float, **args: Any) -> Reply:
    """Send a request to the leader in the name of this user, and return its answer.

    Raises:
        CommandFailed: no leader answered in time.
    """
    if output.to_terminal():
        view = cluster.view()
        if view.leader is None:
            click.echo(f"{leader_text(view)}; waiting up to {timeout:g} s for a leader ...", err=True)
    try:
        return cluster.ask(kind, by=_user(), timeout=timeout, **args)
    except NoAnswer as exc:
        raise CommandFailed(f"{exc} ({leader_text(cluster.view())})") from exc


def _user() -> str:
    try:
        name = getpass.getuser()
    except Exception:
        name = "unknown"
    return f"{name}@{socket.gethostname()}"


def find_member(members: Iterable[Member], name: str) -> Member:
    """Return the replica with this id, else the one whose id starts with it, else the one on this host.

    Raises:
        CommandUnavailable: no replica matches, or more than one.
    """
    members = list(members)
    found = [each for each in members if each.id == name]
    found = found or [each for each in members if each.id.startswith(name)]
    found = found or [each for each in members if each.host == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandUnavailable(f"{name!r} matches {len(found)} replicas: {', '.join(each.id for each in found)}")
    # Compared without the end of the ids, which is random.
    names = [each.id.rpartition(":")[0] or each.id for each in members]
    hint = did_you_mean(nearest(name, names, limit=1))
    hint = hint or f"; the replicas are {', '.join(each.id for each in members) or 'none'}"
    raise CommandUnavailable(f"there is no replica {name!r}{hint}")


def leader_text(view: ClusterView) -> str:
    """Return which replica leads, or why there is no leader."""
    leader, lease = view.leader, view.lease
    if leader is not None:
        return f"{leader.holder} leads"
    if lease is None:
        return "there is no leader: no replica has run with this cluster name and Redis"
    return f"there is no leader: {why_free(lease)}"


def store_error_text(cluster: ClusterClient, error: StoreError) -> str:
    """Return one line about a failure of Redis."""
    return f"Redis failed at {cluster.redis_name}: {error}"
