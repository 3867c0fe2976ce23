"""Assembles a replica: builds every part from the settings and connects them to each other."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import celery
from celery import Celery

from ha_beat import __version__
from ha_beat.beat_loop import ReplicaSource, Runtime
from ha_beat.celery_app import broker_client, broker_is_redis, fingerprint, lease_link, lease_redis_name
from ha_beat.clock import Clock, SystemClock
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.broker import BrokerLink
from ha_beat.dispatch.lease_marker import StoreMark
from ha_beat.dispatch.publisher import Publisher
from ha_beat.dispatch.selector import DispatcherSelector
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.elector import Elector
from ha_beat.election.state_machine import Timing
from ha_beat.errors import StoreError
from ha_beat.events import Event, Events, TermStarted
from ha_beat.leader import Enqueuer, Rules
from ha_beat.leader.pause import PauseState
from ha_beat.leader.request_handler import build_request_handler
from ha_beat.monitoring.logs import LogWriter
from ha_beat.monitoring.setup import observe
from ha_beat.reasons import TermEnd
from ha_beat.settings import Settings
from ha_beat.signals import SignalRelay
from ha_beat.store.connections import Link
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.lease import RedisLeaseStore, Replica, Term, new_token
from ha_beat.store.ledger import Ledger
from ha_beat.store.presence import RedisPresence
from ha_beat.store.request_queue import Requests
from ha_beat.store.shadow import Shadow, ShadowFeed


def replica_of(app: Celery, settings: Settings) -> Replica:
    """This process's identity. To be made after any fork."""
    host, pid = socket.gethostname(), os.getpid()
    name = settings.replica or f"{host}:{pid}"
    return Replica(
        id=f"{name}:{new_token()[:6]}",
        host=host,
        pid=pid,
        version=__version__,
        fingerprint=fingerprint(app),
        http=_advertised(settings),
    )


def check_http(settings: Settings) -> None:
    """Refuse to start where the HTTP endpoint was asked for and can't be had.

    Raises:
        ConfigurationError: a library is missing, or the port is taken.
    """
    if settings.http_address is not None:
        from ha_beat.monitoring.http import check_bind

        check_bind(*settings.http_address)


def _advertised(settings: Settings) -> str:
    if settings.http_address is None:
        return ""
    from ha_beat.monitoring.http import advertised_url

    return advertised_url(*settings.http_address)


def assemble(app: Celery, settings: Settings, source: ReplicaSource, clock: Clock | None = None) -> Runtime:
    """Build a replica. To be called after any fork; connects to nothing yet."""
    clock = clock or SystemClock()
    events = Events()
    replica = replica_of(app, settings)
    events.subscribe(LogWriter(replica.id, settings.cluster))
    keys = Keys(settings.cluster)

    def link() -> Link:
        return lease_link(app, settings)

    elector_link, release_link, main_link = link(), link(), link()
    time, shadow = SchedulingTime(clock, events.emit), Shadow()
    timing = Timing(settings.lease_ttl, settings.renew_interval, settings.poll_interval, settings.stall_timeout)
    elector = Elector(
        RedisLeaseStore(
            elector_link.client,
            keys,
            settings.journal_age,
            offset=lambda: time.offset,
            wait_replicas=settings.wait_replicas,
            wait_timeout=settings.command_timeout / 2,
        ),
        RedisPresence(
            elector_link.client,
            keys,
            clock,
            ping_interval=settings.lease_ttl / 3,
            sharded=elector_link.sharded,
        ),
        replica,
        timing,
        clock,
        events.emit,
        time,
        follow=ShadowFeed(elector_link.client, keys, shadow, clock).poll,
    )
    elector.ready = source.ready
    elector.remembers = lambda: bool(shadow.gen)
    mark = _mark(app, settings, keys, main_link, replica, clock, events)
    if mark is not None:
        elector.permitted = mark.permits
    claim = _claim(app, settings, keys, main_link, clock, elector, mark)
    path = DispatcherSelector(_atomic(app, settings, keys, mark), claim, events.emit)
    pause = PauseState()
    enqueuer = Enqueuer(
        source,
        path,
        shadow,
        time,
        settings.cluster,
        clock,
        events.emit,
        Rules(
            batch_size=settings.batch_size,
            publish_deadline=settings.publish_deadline,
            catch_up_after_loss=settings.on_state_loss == "catch_up",
            handover_after=max(settings.lease_ttl, 5.0),
            claims_settle_after=2 * settings.command_timeout + 1.0,
            changed_server_pause=settings.lease_ttl,
        ),
        pause,
        elector.progress,
    )
    request_handler, report = build_request_handler(
        Requests(main_link.client, keys, settings.journal_size),
        Journal(main_link.client, keys),
        enqueuer,
        pause,
        source,
        elector,
        shadow,
        settings.cluster,
        clock,
        events.emit,
    )
    events.subscribe(report.note)
    events.subscribe(SignalRelay(app, settings.cluster, replica.id))
    release_store = RedisLeaseStore(release_link.client, keys)

    def connect_ahead(event: Event) -> None:
        # A signal handler will use this connection: it must not be the one that makes it.
        if isinstance(event, TermStarted):
            with suppress(StoreError):
                release_store.observe()

    events.subscribe(connect_ahead)

    def release(term: Term) -> None:
        claim.let_go(term, release_link.client())
        release_store.release(term, TermEnd.SHUTDOWN)

    return Runtime(
        replica=replica,
        settings=settings,
        source=source,
        elector=elector,
        enqueuer=enqueuer,
        request_handler=request_handler,
        path=path,
        observation=observe(
            replica,
            settings,
            keys,
            link().client,
            elector,
            lambda: enqueuer.agenda,
            enqueuer.now,
            clock,
            events,
            {"version": __version__, "celery": celery.__version__},
        ),
        events=events,
        release=release,
        mark=mark,
        shadow=shadow,
        ledger=Ledger(link().client, keys),
    )


def _mark(
    app: Celery, settings: Settings, keys: Keys, store: Link, replica: Replica, clock: Clock, events: Events
) -> StoreMark | None:
    broker = broker_client(app, settings)
    if broker is None:
        return None
    name, ttl = lease_redis_name(app, settings), settings.lease_ttl
    return StoreMark(broker, store.client, keys, name, replica.id, ttl, clock, events.emit)


def _atomic(app: Celery, settings: Settings, keys: Keys, mark: StoreMark | None) -> AtomicDispatcher | None:
    if not broker_is_redis(app):
        return None
    return AtomicDispatcher(app, BrokerLink(app, settings.command_timeout), keys, settings.journal_size, mark)


def _claim(
    app: Celery, settings: Settings, keys: Keys, link: Link, clock: Clock, elector: Elector, mark: StoreMark | None
) -> ClaimDispatcher:
    def trusted(term: Term) -> bool:
        now = elector.term
        return now is not None and now.nonce == term.nonce

    return ClaimDispatcher(
        Publisher(app, settings.command_timeout, clock),
        link,
        keys,
        settings.journal_size,
        confirm_for=settings.command_timeout,
        trusted=trusted,
        mark=mark,
    )
