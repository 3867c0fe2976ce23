"""Assembly of a replica: builds every part from the settings and wires them to each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import celery
from celery import Celery

from ha_beat import __version__
from ha_beat.beat_loop import ReplicaSource, Runtime
from ha_beat.budget import Pace, budget_for
from ha_beat.celery_app import (
    broker_client,
    broker_is_redis,
    fingerprint,
    ignored_brokers,
    lease_link,
    lease_redis_name,
)
from ha_beat.clock import Clock, SystemClock
from ha_beat.dispatch.atomic import AtomicDispatcher
from ha_beat.dispatch.brokers.publisher import Publisher
from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.dispatch.lease_marker import LeaseMark, LeaseMarker
from ha_beat.dispatch.selector import DispatcherSelector
from ha_beat.dispatch.two_phase import ClaimDispatcher
from ha_beat.duties import Duties
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.election.elector import Elector, Eligibility
from ha_beat.election.states import Timing
from ha_beat.errors import StoreError
from ha_beat.event_queue import EventQueue
from ha_beat.events import BrokersIgnored, Event, Events, Subscriber, TermStarted
from ha_beat.leader import Enqueuer, LeaderOptions, LeaderParts
from ha_beat.leader.forecast import Forecast
from ha_beat.leader.pause import PauseState
from ha_beat.leader.requests.handler import build_request_handler
from ha_beat.monitoring.broker_probe import BrokerProbe
from ha_beat.monitoring.http.address import Endpoint, advertised_url, check_bind, choose_endpoint
from ha_beat.monitoring.logs import LogWriter
from ha_beat.monitoring.setup import Monitoring
from ha_beat.monitoring.status import Poller, ReplicaStatus
from ha_beat.monitoring.watchdog import Watchdog
from ha_beat.reasons import Duty, TermEnd
from ha_beat.settings import Settings
from ha_beat.signals import SignalRelay
from ha_beat.store.connections import Link
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Replica, Term, new_token
from ha_beat.store.lease_store import RedisLeaseStore
from ha_beat.store.ledger import Ledger
from ha_beat.store.presence import RedisPresence
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.request_queue import Requests
from ha_beat.store.shadow import Shadow, ShadowFeed

if TYPE_CHECKING:
    from ha_beat.monitoring.http.server import HttpServer

#: Most events that wait for the log, and for the handlers of signals.
_LOG_QUEUE = 20_000
_SIGNAL_QUEUE = 1000


def check_http(settings: Settings) -> None:
    """Refuse to start if the HTTP endpoint is configured and cannot be served.

    Raises:
        ConfigurationError: a library is missing, or the port is in use.
    """
    if settings.http_address is not None:
        check_bind(*settings.http_address)


def assemble(app: Celery, settings: Settings, source: ReplicaSource, clock: Clock | None = None) -> Runtime:
    """Build a replica. Call it after any fork. It does not connect."""
    return _Assembly(app, settings, source, clock or SystemClock()).runtime()


class _Assembly:
    """Builder of one replica. The parts that others need are attributes."""

    def __init__(self, app: Celery, settings: Settings, source: ReplicaSource, clock: Clock) -> None:
        self.app, self.settings, self.source, self.clock = app, settings, source, clock
        self.keys = Keys(settings.cluster)
        self.endpoint = choose_endpoint(*settings.http_address) if settings.http_address else None
        self.replica = _identity(app, settings, self.endpoint)
        self.events = Events()
        self.duties = Duties(clock, self.events.emit)
        log = LogWriter(self.replica.id, settings.cluster)
        self.log = self.queued(log, name="ha_beat-log", duty=Duty.WRITE_LOG, size=_LOG_QUEUE, wants=log.wants)
        self.events.subscribe(self.log)
        self.time = SchedulingTime(clock, self.events.emit)
        self.shadow = Shadow()
        #: Used by the main loop only.
        self.main_link = self.link()

    def queued(
        self, consume: Subscriber, *, name: str, duty: Duty, size: int, wants: Callable[[Event], bool]
    ) -> EventQueue:
        """Return a subscriber that calls ``consume`` in a thread, because it may wait."""
        return EventQueue(
            consume,
            name=name,
            duty=duty,
            size=size,
            clock=self.clock,
            hub=self.events,
            duties=self.duties,
            wants=wants,
        )

    def link(self) -> Link:
        """Return a new link to the lease's Redis: each thread has its own."""
        return lease_link(self.app, self.settings)

    def runtime(self) -> Runtime:
        settings, events, clock = self.settings, self.events, self.clock
        marker = self.lease_marker()
        elector = self.elector(marker)
        pace = Pace(clock, budget_for(settings.stall_timeout), elector.handle.progress)
        claim = self.claim_dispatcher(elector, marker, pace)
        dispatch = DispatcherSelector(self.atomic_dispatcher(marker), claim, marker, events.emit)
        pause = PauseState()
        enqueuer = Enqueuer(
            LeaderParts(
                self.source,
                dispatch,
                self.shadow,
                self.time,
                settings.cluster,
                clock,
                events.emit,
                _leader_options(settings),
                pause,
                pace,
                Forecast(self.source.outlines, self.shadow, self.time.now, clock),
            )
        )
        main_client = self.main_link.client
        request_handler, report = build_request_handler(
            requests=Requests(main_client, self.keys, settings.journal_size),
            journal=Journal(main_client, self.keys),
            enqueuer=enqueuer,
            pause=pause,
            source=self.source,
            leader=elector.handle,
            shadow=self.shadow,
            cluster=settings.cluster,
            pace=pace,
            emit=events.emit,
        )
        events.subscribe(report.note)
        relay = SignalRelay(self.app, settings.cluster, self.replica.id)
        events.subscribe(
            self.queued(relay, name="ha_beat-signals", duty=Duty.SEND_SIGNALS, size=_SIGNAL_QUEUE, wants=relay.wants)
        )
        ignored = ignored_brokers(self.app, settings)
        if ignored is not None:
            events.emit(BrokersIgnored(*ignored))
        return Runtime(
            replica=self.replica,
            settings=settings,
            source=self.source,
            elector=elector,
            enqueuer=enqueuer,
            request_handler=request_handler,
            dispatch=dispatch,
            monitoring=self.monitoring(elector, enqueuer),
            events=events,
            duties=self.duties,
            log=self.log,
            release=self.release(claim),
            shadow=self.shadow,
            ledger=Ledger(self.link().client, self.keys),
        )

    # --- Election

    def elector(self, marker: LeaseMarker) -> Elector:
        settings, clock, client = self.settings, self.clock, self.link()
        store = RedisLeaseStore(
            client.client,
            self.keys,
            settings.journal_age,
            journal_size=settings.journal_size,
            offset=lambda: self.time.offset,
            wait_replicas=settings.wait_replicas,
            wait_timeout=settings.command_timeout / 2,
        )
        ping_interval = settings.lease_ttl / 3
        eligibility = Eligibility(
            ready=lambda: self.source.ready() and marker.may_campaign(),
            remembers=lambda: bool(self.shadow.gen),
        )
        return Elector(
            store,
            RedisPresence(client.client, self.keys, clock, ping_interval=ping_interval, sharded=client.sharded),
            self.replica,
            Timing(settings.lease_ttl, settings.renew_interval, settings.poll_interval, settings.stall_timeout),
            clock,
            self.events.emit,
            self.time,
            eligibility,
            follow=ShadowFeed(client.client, self.keys, self.shadow, clock).poll,
            duties=self.duties,
        )

    def release(self, claim: ClaimDispatcher) -> Callable[[Term], None]:
        """Return a function that releases the lease, for a signal handler of the main thread."""
        link = self.link()
        store = RedisLeaseStore(link.client, self.keys)

        def connect(_: Event) -> None:
            with suppress(StoreError), mapped_redis_errors():
                link.client().ping()

        def release(term: Term) -> None:
            claim.resolve_own(term, link.client())
            store.release(term, TermEnd.SHUTDOWN)

        # At the start of a term, so that the signal handler does not have to connect.
        self.events.subscribe(
            self.queued(
                connect,
                name="ha_beat-release",
                duty=Duty.PREPARE_RELEASE,
                size=10,
                wants=lambda event: isinstance(event, TermStarted),
            )
        )
        return release

    # --- Dispatch

    def lease_marker(self) -> LeaseMarker:
        settings = self.settings
        name, ttl_ms = lease_redis_name(self.app, settings), round(settings.lease_ttl * 1000)
        own = LeaseMark("", name=name, ttl_ms=ttl_ms, holder=self.replica.id)
        broker = broker_client(self.app, settings)
        return LeaseMarker(broker, self.main_link.client, self.keys, own, self.clock, self.events.emit, self.duties)

    def atomic_dispatcher(self, marker: LeaseMarker) -> AtomicDispatcher | None:
        if not broker_is_redis(self.app):
            return None
        failover = self.settings.redis_url is not None
        broker = BrokerLink(self.app, self.settings.command_timeout, failover=failover)
        return AtomicDispatcher(self.source.sender, broker, self.keys, self.settings.journal_size, marker)

    def claim_dispatcher(self, elector: Elector, marker: LeaseMarker, pace: Pace) -> ClaimDispatcher:
        def trusted(term: Term) -> bool:
            now = elector.handle.term
            return now is not None and now.nonce == term.nonce

        timeout = self.settings.command_timeout
        return ClaimDispatcher(
            Publisher(self.app, timeout, self.clock, self.source.sender),
            self.main_link,
            self.keys,
            self.settings.journal_size,
            confirm_for=timeout,
            trusted=trusted,
            marker=marker,
            pace=pace,
            emit=self.events.emit,
        )

    # --- Monitoring

    def monitoring(self, elector: Elector, enqueuer: Enqueuer) -> Monitoring:
        settings, clock, events, duties = self.settings, self.clock, self.events, self.duties
        status = ReplicaStatus(
            self.replica,
            settings.cluster,
            clock,
            elector.handle,
            enqueuer,
            duties,
            schedule_read=self.source.ready,
            stall_timeout=settings.stall_timeout,
        )
        events.subscribe(status.memory)
        poller = Poller(
            status,
            self.link().client,
            self.keys,
            clock,
            full=self.endpoint is not None,
            compare_clocks=self.time.others_said,
            emit=events.emit,
        )
        # With its own connection: the main loop uses the other publisher.
        check_broker = Publisher(self.app, settings.command_timeout, clock).ready
        broker = BrokerProbe(check_broker, duties, clock, events.emit)
        return Monitoring(
            status, poller, Watchdog(status, duties, clock, events.emit), broker, self.http_server(status), clock
        )

    def http_server(self, status: ReplicaStatus) -> HttpServer | None:
        if self.endpoint is None:
            return None
        # They need the extra.
        from ha_beat.monitoring.http.routes import Site
        from ha_beat.monitoring.http.server import HttpServer
        from ha_beat.monitoring.metrics import Metrics

        versions = {"version": __version__, "celery": celery.__version__}
        metrics = Metrics(status, versions, per_entry=self.settings.metrics_per_entry)
        self.events.subscribe(metrics)
        site = Site(status, metrics.text, self.clock)
        return HttpServer(site, self.endpoint, duties=self.duties, emit=self.events.emit)


def _leader_options(settings: Settings) -> LeaderOptions:
    return LeaderOptions(
        batch_size=settings.batch_size,
        publish_deadline=settings.publish_deadline,
        catch_up_after_loss=settings.on_state_loss == "catch_up",
        handover_after=max(settings.lease_ttl, 5.0),
        claim_in_flight_for=2 * settings.command_timeout + 1.0,
        changed_server_pause=settings.lease_ttl,
    )


def _identity(app: Celery, settings: Settings, endpoint: Endpoint | None) -> Replica:
    """Return the identity of this process. Call it after any fork."""
    host, pid = socket.gethostname(), os.getpid()
    name = settings.replica or f"{host}:{pid}"
    http = url = ""
    if endpoint is not None:
        http = advertised_url(endpoint.host, endpoint.port)
        url = (settings.page_url or "").replace("{replica}", name).replace("{port}", str(endpoint.port))
    return Replica(
        id=f"{name}:{new_token()[:6]}",
        host=host,
        pid=pid,
        version=__version__,
        fingerprint=fingerprint(app),
        http=http,
        url=url,
    )
