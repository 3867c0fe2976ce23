"""What the commands share: the way to the cluster of the app, and how failures are said."""

from __future__ import annotations

import difflib
import getpass
import socket
from collections.abc import Callable, Iterable
from functools import cached_property, update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click
from celery import Celery

from ha_beat.celery_app import check_topology, lease_link, load_settings
from ha_beat.cli import output
from ha_beat.clock import SystemClock
from ha_beat.errors import ConfigurationError, HaBeatError, StoreError
from ha_beat.monitoring.wording import term_end_in_words
from ha_beat.settings import Settings, redact_url
from ha_beat.store.journal import Journal
from ha_beat.store.lease import Keys, LeaseRecord
from ha_beat.store.ledger import Ledger
from ha_beat.store.membership import ClusterView, Member, Members
from ha_beat.store.request_queue import NobodyAnswered, Reply, Request, Requests

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


class Cluster:
    """The cluster of an app, as the commands see it. Connects at the first question."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.clock = SystemClock()

    @cached_property
    def settings(self) -> Settings:
        settings = load_settings(self.app)
        check_topology(self.app, settings)
        return settings

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.settings.cluster)

    @cached_property
    def client(self) -> Callable[[], Any]:
        return lease_link(self.app, self.settings).client

    @cached_property
    def members(self) -> Members:
        return Members(self.client, self.keys)

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.client, self.keys)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.client, self.keys)

    @cached_property
    def requests(self) -> Requests:
        return Requests(self.client, self.keys, self.settings.journal_size)

    @property
    def redis_name(self) -> str:
        """Where the lease's Redis is, without secrets."""
        try:
            return redact_url(self.settings.redis_url or str(self.app.conf.broker_url or "the broker"))
        except Exception:
            return "Redis"

    def view(self) -> ClusterView:
        return self.members.view()

    def ask(self, action: str, timeout: float, **args: Any) -> Reply:
        """Ask the leader.

        Raises:
            NotWell: nobody answered.
        """
        if output.to_terminal():
            view = self.view()
            if leader_of(view) is None:
                click.echo(f"{_leadership(view)}; waiting up to {timeout:g} s for a leader ...", err=True)
        try:
            return self.requests.ask(Request(action, args, by=whoami()), self.clock, timeout)
        except NobodyAnswered as exc:
            raise NotWell(f"{exc} ({_leadership(self.view())})") from exc


def whoami() -> str:
    """Who asks, for the journal."""
    try:
        name = getpass.getuser()
    except Exception:
        name = "somebody"
    return f"{name}@{socket.gethostname()}"


def leader_of(view: ClusterView) -> LeaseRecord | None:
    """The lease, where somebody holds it and renews it."""
    lease = view.lease
    if lease is None or not lease.held:
        return None
    unheard_ms = view.server_ms - (lease.renewed_ms or lease.since_ms)
    return lease if unheard_ms <= lease.ttl_ms else None


def _leadership(view: ClusterView) -> str:
    leader, lease = leader_of(view), view.lease
    if leader is not None:
        return f"{leader.holder} leads"
    if lease is None:
        return "nobody leads: no replica has run with this cluster name and Redis"
    if not lease.held:
        return f"nobody leads: {lease.holder} released the lease ({term_end_in_words(lease.reason, lease.detail)})"
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


def on_cluster(command: Callable[Concatenate[Cluster, P], T]) -> Callable[P, T]:
    """Hand the app's cluster to a command, and say in one line what goes wrong."""

    @click.pass_context
    def run(ctx: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> T:
        app = getattr(ctx.obj, "app", None)
        if app is None:
            raise CantTell("which app? Say so: celery -A your_project ha-beat …")
        cluster = Cluster(app)
        try:
            return command(cluster, *args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except ConfigurationError as exc:
            named = app.main not in (None, "default", "__main__")
            raise CantTell(f"{exc}{'' if named else ' (was the app given? celery -A your_project …)'}") from exc
        except StoreError as exc:
            raise CantTell(f"Redis can't be asked at {cluster.redis_name}: {exc}") from exc
        except HaBeatError as exc:
            raise CantTell(str(exc)) from exc
        except BrokenPipeError:
            raise
        except Exception as exc:
            raise CantTell(f"internal error: {type(exc).__name__}: {exc}") from exc

    return cast("Callable[P, T]", update_wrapper(cast("Any", run), command))
