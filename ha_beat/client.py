"""Client of a cluster, for programs that are not replicas: the CLI and Django."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Celery

from ha_beat.celery_app import check_topology, lease_link, load_settings
from ha_beat.clock import SystemClock
from ha_beat.reasons import RequestKind
from ha_beat.settings import Settings, redact_url
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import Ledger
from ha_beat.store.membership import ClusterView, Members
from ha_beat.store.request_queue import Reply, Request, Requests

if TYPE_CHECKING:
    import redis


class ClusterClient:
    """Reads the state of one app's cluster, and sends requests to its leader.

    It connects at the first call. Calls raise ``StoreError`` if Redis fails. One client may serve several threads.
    """

    def __init__(self, app: Celery, settings: Settings | None = None) -> None:
        """Create a client with these settings; by default those of the app and the environment.

        Raises:
            ConfigurationError: a setting is wrong, or no Redis can hold the lease.
        """
        self.app = app
        self.settings = settings or load_settings(app)
        check_topology(app, self.settings)
        self.clock = SystemClock()
        self.keys = Keys(self.settings.cluster)
        self.client: Callable[[], redis.Redis] = lease_link(app, self.settings).client
        self.members = Members(self.client, self.keys)
        self.journal = Journal(self.client, self.keys)
        self.ledger = Ledger(self.client, self.keys)
        self.requests = Requests(self.client, self.keys, self.settings.journal_size)

    @property
    def redis_name(self) -> str:
        """Return the URL of the lease's Redis as the user gave it, without secrets."""
        return redact_url(self.settings.redis_url or str(self.app.conf.broker_url or "the broker"))

    def view(self) -> ClusterView:
        """Return the lease, the living replicas and the counters of the cluster."""
        return self.members.view()

    def ask(self, kind: RequestKind, *, by: str, timeout: float, **args: Any) -> Reply:
        """Send a request to the leader, and wait up to ``timeout`` seconds for its answer.

        ``by`` names the caller in logs and in the journal; ``args`` are the request's arguments.

        Raises:
            NoAnswer: no leader answered in time; the request was withdrawn and will not be carried out.
            TooManyRequests: the queue of requests is full; nothing was sent.
        """
        return self.requests.ask(Request(kind, args, by=by), self.clock, timeout)
