"""What the commands share: the way to the cluster of the app, and how failures are said."""

from __future__ import annotations

import difflib
import getpass
import socket
from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

from ha_beat.cli import output
from ha_beat.client import ClusterClient
from ha_beat.errors import ConfigurationError, HaBeatError, StoreError
from ha_beat.monitoring.wording import phrase
from ha_beat.reasons import RequestKind
from ha_beat.store.membership import ClusterView, Member
from ha_beat.store.request_queue import NoAnswer, Reply

P = ParamSpec("P")
T = TypeVar("T")

#: Exit status: the cluster is not as it should be, or did not do what was asked.
NOT_WELL = 1

#: Exit status: it can't be told, since Redis can't be reached or the settings or the command line are wrong.
CANT_TELL = 2


class CantTell(click.ClickException):
    """Ends a command with one line and exit status 2."""

    exit_code = CANT_TELL


class NotWell(click.ClickException):
    """Ends a command with one line and exit status 1."""

    exit_code = NOT_WELL


def ask(cluster: ClusterClient, kind: RequestKind, timeout: float, **args: Any) -> Reply:
    """Send a request to the leader in the name of this user, and return its answer.

    Raises:
        NotWell: no leader answered in time.
    """
    if output.to_terminal():
        view = cluster.view()
        if view.leader is None:
            click.echo(f"{_leadership(view)}; waiting up to {timeout:g} s for a leader ...", err=True)
    try:
        return cluster.ask(kind, by=whoami(), timeout=timeout, **args)
    except NoAnswer as exc:
        raise NotWell(f"{exc} ({_leadership(cluster.view())})") from exc


def whoami() -> str:
    """Who asks, for the journal."""
    try:
        name = getpass.getuser()
    except Exception:
        name = "somebody"
    return f"{name}@{socket.gethostname()}"


def _leadership(view: ClusterView) -> str:
    leader, lease = view.leader, view.lease
    if leader is not None:
        return f"{leader.holder} leads"
    if lease is None:
        return "nobody leads: no replica has run with this cluster name and Redis"
    if not lease.held:
        return f"nobody leads: {lease.holder} released the lease ({phrase(lease.reason, lease.detail)})"
    return f"nobody leads: {lease.holder} holds the lease and does not renew it"


leadership_in_words = _leadership


def find_member(members: Iterable[Member], name: str) -> Member:
    """The replica of this id, or whose id begins so, or of this host.

    Raises:
        CantTell: there is none, or more than one.
    """
    members = list(members)
    found = [each for each in members if each.id == name]
    found = found or [each for each in members if each.id.startswith(name)]
    found = found or [each for each in members if each.host == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise CantTell(f"{name!r} names {len(found)} replicas: {', '.join(each.id for each in found)}")
    known = [each.id for each in members]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known) or 'none'}"
    raise CantTell(f"there is no replica {name!r}{hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def on_cluster(command: Callable[Concatenate[ClusterClient, P], T]) -> Callable[P, T]:
    """Hand the app's cluster to a command, and say in one line what goes wrong."""

    @click.pass_context
    def run(ctx: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> T:
        app = getattr(ctx.obj, "app", None)
        if app is None:
            raise CantTell("which app? Say so: celery -A your_project ha-beat …")
        try:
            cluster = ClusterClient(app)
            try:
                return command(cluster, *args, **kwargs)
            except StoreError as exc:
                raise CantTell(f"Redis can't be asked at {cluster.redis_name}: {exc}") from exc
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except ConfigurationError as exc:
            named = app.main not in (None, "default", "__main__")
            raise CantTell(f"{exc}{'' if named else ' (was the app given? celery -A your_project …)'}") from exc
        except HaBeatError as exc:
            raise CantTell(str(exc)) from exc
        except BrokenPipeError:
            raise
        except Exception as exc:
            raise CantTell(f"internal error: {type(exc).__name__}: {exc}") from exc

    return cast("Callable[P, T]", update_wrapper(cast("Any", run), command))
