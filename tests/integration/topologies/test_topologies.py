"""The lease on every kind of Redis that Celery supports, over both protocols."""

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ha_beat.reasons import TermEnd
from ha_beat.store.connections import Link
from tests.integration.topologies.conftest import TlsServer
from tests.integration.topologies.replica import KEYS, Campaigner, broker_link, cluster_url, link
from tests.support.servers import RedisCluster, RedisServer, need, wait_for


def verified(tls: TlsServer) -> str:
    """Return a URL that requires the certificate, with the client's own."""
    options = {"ssl_cert_reqs": "CERT_REQUIRED", **tls.client_options}
    return f"{tls.url}?" + "&".join(f"{name}={value}" for name, value in options.items())


def in_options(server: RedisServer) -> dict[str, Any]:
    return {"username": "default", "password": server.password}


def unverified(tls: TlsServer) -> dict[str, Any]:
    return {**tls.client_options, "ssl_cert_reqs": "CERT_NONE"}


def by_kombu(server: RedisServer) -> str:
    return f"redis+socket://{server.socket_path}?virtual_host=0"


#: By name: the fixture of the server, the URL, and the options.
WAYS: dict[str, tuple[str, Callable[[Any], str], Callable[[Any], dict[str, Any]]]] = {
    "password_in_url": ("socket_server", lambda server: server.url, lambda _: {}),
    "password_in_options": ("socket_server", lambda server: f"redis://127.0.0.1:{server.port}/0", in_options),
    "unix_socket": ("socket_server", lambda server: server.unix_url, lambda _: {}),
    "kombus_socket": ("socket_server", by_kombu, lambda server: {"password": server.password}),
    "valkey": ("valkey", lambda server: server.url, lambda _: {}),
    "tls_checked": ("tls", verified, lambda _: {}),
    "tls_unchecked": ("tls", lambda tls: tls.url, unverified),
    "sentinel": ("sentinels", lambda sentinels: sentinels.url, lambda sentinels: sentinels.transport_options),
    "redis_cluster": ("redis_cluster", cluster_url, lambda _: {}),
}


def with_sentinel_kwargs(sentinels: Any) -> dict[str, Any]:
    options = {**sentinels.transport_options, "sentinel_kwargs": {"client_name": "beat"}}
    return {"broker_transport_options": options}


def use_ssl(tls: TlsServer) -> dict[str, Any]:
    return {"broker_use_ssl": {**tls.client_options, "ssl_cert_reqs": ssl.CERT_REQUIRED}}


#: By name: the fixture of the broker, the URL, and Celery's settings.
BROKERS: dict[str, tuple[str, Callable[[Any], str], Callable[[Any], dict[str, Any]]]] = {
    "plain": ("socket_server", lambda server: server.url, lambda _: {}),
    "tls_by_url": ("tls", verified, lambda _: {}),
    "tls_by_setting": ("tls", lambda tls: tls.url, use_ssl),
    "sentinels_with_options": ("sentinels", lambda sentinels: sentinels.url, with_sentinel_kwargs),
}


def hold_the_lease(way_there: Link) -> None:
    """Lead with presence; a standby sees it, is woken by the release, and leads next."""
    with Campaigner(way_there, name="first") as first:
        first.wait_to_lead()
        view = first.store.observe()
        assert view.record is not None
        assert view.subscribers == 1
        assert view.record.presence == first.registered
        seq = view.record.seq
        wait_for(lambda: (first.store.observe().record or view.record).seq > seq, 10, "a renewal")
        subscription = first.presence._subscription
        subscription._next_ping = 0.0
        wait_for(lambda: subscription._next_ping > 0.0, 10, "a ping")
        wait_for(lambda: not subscription._unanswered, 10, "its answer")
        assert not first.told("presence_lost"), first.lines
        first.elector.handle.step_down(TermEnd.STEP_DOWN)
        wait_for(lambda: (record := first.store.observe().record) and not record.held, 10, "the release")


def _ways() -> Iterator[Any]:
    """Return each topology over RESP3 and RESP2; only one of RESP2 is in the quick part."""
    for kind in WAYS:
        yield pytest.param(kind, 3, id=f"{kind}-RESP3")
        yield pytest.param(kind, 2, id=f"{kind}-RESP2", marks=() if kind == "password_in_url" else pytest.mark.slow)


@pytest.mark.parametrize(("kind", "protocol"), list(_ways()))
def test_the_lease_by_a_url_of_its_own(request: pytest.FixtureRequest, kind: str, protocol: int) -> None:
    server, url, options = WAYS[kind]
    found = request.getfixturevalue(server)
    hold_the_lease(link(url(found), protocol=protocol, **options(found)))


@pytest.mark.parametrize("kind", BROKERS)
def test_the_lease_at_the_broker(request: pytest.FixtureRequest, kind: str) -> None:
    """With the URL and the options of Celery."""
    server, url, conf = BROKERS[kind]
    found = request.getfixturevalue(server)
    hold_the_lease(broker_link(url(found), **conf(found)))


def test_the_lease_at_a_broker_on_a_socket() -> None:
    with need(lambda: RedisServer(unixsocket=True)) as own:
        hold_the_lease(broker_link(by_kombu(own)))


def test_presence_in_a_cluster_is_a_shard_channel(redis_cluster: RedisCluster) -> None:
    """The script on the keys' node counts it, and its end is seen immediately."""
    with Campaigner(link(cluster_url(redis_cluster), protocol=2)) as replica:
        replica.wait_to_lead()
        assert replica.registered.startswith(f"{{ha-beat:{KEYS.cluster}}}:presence:shard:")
        node = redis_cluster.node_for(KEYS.lease)
        assert node.admin.execute_command("PUBSUB", "SHARDCHANNELS") == [replica.registered]
        node.admin.client_kill_filter(_type="pubsub")
        replica.wait_for_line("presence_lost")
        replica.wait_to_lead()


def test_a_server_that_is_not_trusted_is_named(tls: TlsServer) -> None:
    """A certificate of an unknown authority causes a log line, no crash."""
    options = {name: value for name, value in tls.client_options.items() if name != "ssl_ca_certs"}
    with Campaigner(link(tls.url, ssl_cert_reqs="CERT_REQUIRED", **options)) as replica:
        replica.wait_for_line("lease_unreachable", "certificate")
