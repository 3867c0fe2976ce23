"""Assembly of a replica: builds every part from the settings and wires them to each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
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
from ha_beat.clock import SystemClock
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
from ha_beat.event_queue import Consumer, EventQueue
from ha_beat.events import BrokersIgnored, Event, Events, TermStarted
from ha_beat.leader import Enqueuer, LeaderOptions, LeaderParts
from ha_beat.leader.forecast import Forecast
from ha_beat.leader.pause import PauseState
from ha_beat.leader.requests.handler import RequestHandler, build_request_handler
from ha_beat.monitoring.broker_probe import BrokerProbe
from ha_beat.monitoring.http.address import Endpoint, advertised_url, choose_endpoint
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


def assemble(app: Celery, settings: Settings, source: ReplicaSource) -> Runtime:
    """Build a replica. Call it after any fork. It does not connect."""
    return _Assembly(app, settings, source).runtime()


class _Assembly:
    """Builder of one replica. A part that several others need is a property, built at its first use.

    It has more than 15 methods and attributes: one for each part.
    """

    def __init__(self, app: Celery, settings: Settings, source: ReplicaSource) -> None:
        self.app, self.settings, self.source = app, settings, source
        self.clock = clock = SystemClock()
        self.keys = Keys(settings.cluster)
        self.endpoint = choose_endpoint(*settings.http_address) if settings.http_address else None
        self.replica = _identity(app, settings, self.endpoint)
        self.events = Events()
        self.duties = Duties(clock, self.events.emit)
        self.time = SchedulingTime(clock, self.events.emit)
        self.shadow = Shadow()
        #: Link of the main loop.
        self.main_link = self.link()

    def runtime(self) -> Runtime:
        settings = self.settings
        log = self.subscribe_queue(LogWriter(self.replica.id, settings.cluster), "ha_beat-log", Duty.WRITE_LOG, 20_000)
        request_handler = self.request_handler()
        relay = SignalRelay(self.app, settings.cluster, self.replica.id)
        self.subscribe_queue(relay, "ha_beat-signals", Duty.SEND_SIGNALS, 1000)
        ignored = ignored_brokers(self.app, settings)
        if ignored is not None:
            self.events.emit(BrokersIgnored(*ignored))
        return Runtime(
            source=self.source,
            elector=self.elector,
            enqueuer=self.enqueuer,
            request_handler=request_handler,
            dispatch=self.dispatch,
            monitoring=self.monitoring(),
            events=self.events,
            duties=self.duties,
            log=log,
            release=self.release(),
            ledger=Ledger(self.link().client, self.keys),
        )

    def link(self) -> Link:
        """Return a new link to the lease's Redis: each thread has its own."""
        return lease_link(self.app, self.settings)

    def subscribe_queue(self, consumer: Consumer, name: str, duty: Duty, size: int) -> EventQueue:
        """Subscribe a consumer that may wait. At most ``size`` events wait for it."""
        queue = EventQueue(consumer, name, duty, size, clock=self.clock, hub=self.events, duties=self.duties)
        self.events.subscribe(queue)
        return queue

    # --- Election

    @cached_property
    def elector(self) -> Elector:
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
            ready=lambda: self.source.ready() and self.marker.may_campaign(), remembers=lambda: bool(self.shadow.gen)
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

    def release(self) -> Callable[[Term], None]:
        """Return a function that releases the lease, for a signal handler of the main thread."""
        link, claims = self.link(), self.claims
        store = RedisLeaseStore(link.client, self.keys)

        def release(term: Term) -> None:
            claims.resolve_own(term, link.client())
            store.release(term, TermEnd.SHUTDOWN)

        self.subscribe_queue(_ReleaseConnector(link), "ha_beat-release", Duty.PREPARE_RELEASE, 10)
        return release

    # --- Dispatch

    @cached_property
    def marker(self) -> LeaseMarker:
        settings = self.settings
        name, ttl_ms = lease_redis_name(self.app, settings), round(settings.lease_ttl * 1000)
        own = LeaseMark("", name=name, ttl_ms=ttl_ms, holder=self.replica.id)
        broker = broker_client(self.app, settings)
        return LeaseMarker(broker, self.main_link.client, self.keys, own, self.clock, self.events.emit, self.duties)

    @cached_property
    def dispatch(self) -> DispatcherSelector:
        return DispatcherSelector(self.atomic_dispatcher(), self.claims, self.marker, self.events.emit)

    def atomic_dispatcher(self) -> AtomicDispatcher | None:
        if not broker_is_redis(self.app):
            return None
        failover = self.settings.redis_url is not None
        broker = BrokerLink(self.app, self.settings.command_timeout, failover=failover)
        return AtomicDispatcher(self.source.sender, broker, self.keys, self.settings.journal_size, self.marker)

    @cached_property
    def claims(self) -> ClaimDispatcher:
        def trusted(term: Term) -> bool:
            now = self.elector.handle.term
            return now is not None and now.nonce == term.nonce

        timeout = self.settings.command_timeout
        return ClaimDispatcher(
            Publisher(self.app, timeout, self.clock, self.source.sender),
            self.main_link,
            self.keys,
            self.settings.journal_size,
            confirm_for=timeout,
            trusted=trusted,
            marker=self.marker,
            pace=self.pace,
            emit=self.events.emit,
        )

    # --- The leader's work

    @cached_property
    def pace(self) -> Pace:
        return Pace(self.clock, budget_for(self.settings.stall_timeout), self.elector.handle.progress)

    @cached_property
    def pause(self) -> PauseState:
        return PauseState()

    @cached_property
    def enqueuer(self) -> Enqueuer:
        parts = LeaderParts(
            self.source,
            self.dispatch,
            self.shadow,
            self.time,
            self.settings.cluster,
            self.clock,
            self.events.emit,
            _leader_options(self.settings),
            self.pause,
            self.pace,
            Forecast(self.source.outlines, self.shadow, self.time.now, self.clock),
        )
        return Enqueuer(parts)

    def request_handler(self) -> RequestHandler:
        handler, report = build_request_handler(
            requests=Requests(self.main_link.client, self.keys, self.settings.journal_size),
            journal=Journal(self.main_link.client, self.keys),
            enqueuer=self.enqueuer,
            pause=self.pause,
            source=self.source,
            leader=self.elector.handle,
            shadow=self.shadow,
            cluster=self.settings.cluster,
            pace=self.pace,
            emit=self.events.emit,
        )
        self.events.subscribe(report.note)
        return handler

    # --- Monitoring

    def monitoring(self) -> Monitoring:
        settings, clock, emit, duties = self.settings, self.clock, self.events.emit, self.duties
        status = ReplicaStatus(
            self.replica,
            settings.cluster,
            clock,
            self.elector.handle,
            self.enqueuer,
            duties,
            schedule_read=self.source.ready,
            stall_timeout=settings.stall_timeout,
        )
        self.events.subscribe(status.memory)
        poller = Poller(
            status,
            self.link().client,
            self.keys,
            clock,
            full=self.endpoint is not None,
            compare_clocks=self.time.others_said,
            emit=emit,
        )
        # With its own connection: the main loop uses the other publisher.
        check_broker = Publisher(self.app, settings.command_timeout, clock).ready
        broker = BrokerProbe(check_broker, duties, clock, emit)
        watchdog = Watchdog(status, duties, clock, emit)
        return Monitoring(status, poller, watchdog, broker, self.http_server(status), clock)

    def http_server(self, status: ReplicaStatus) -> HttpServer | None:
        if self.endpoint is None:
            return None
        # These modules need the extra `http`.
        from ha_beat.monitoring.http.routes import Site
        from ha_beat.monitoring.http.server import HttpServer
        from ha_beat.monitoring.metrics import Metrics

        versions = {"version": __version__, "celery": celery.__version__}
        metrics = Metrics(status, versions, per_entry=self.settings.metrics_per_entry)
        self.events.subscribe(metrics)
        site = Site(status, metrics.text, self.clock)
        return HttpServer(site, self.endpoint, duties=self.duties, emit=self.events.emit)


class _ReleaseConnector:
    """Consumer of events that connects the link of the release when a term starts.

    The signal handler that releases the lease then does not have to connect.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def wants(self, event: Event, /) -> bool:
        return isinstance(event, TermStarted)

    def __call__(self, _: Event, /) -> None:
        with suppress(StoreError), mapped_redis_errors():
            self._link.client().ping()


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
