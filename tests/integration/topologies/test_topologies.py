"""The lease on every kind of Redis that Celery supports, over both protocols."""

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.reasons import TermEnd
from ha_beat.store.connections import Link
from tests.integration.topologies.conftest import TlsServer
from tests.integration.topologies.replica import KEYS, TIMEOUT, Campaigner, link, query
from tests.support.servers import RedisServer, need, wait_for

WAYS: dict[str, Callable[[pytest.FixtureRequest, int], Link]] = {}


def way(make: Callable[[pytest.FixtureRequest, int], Link]) -> Callable[[pytest.FixtureRequest, int], Link]:
    WAYS[make.__name__] = make
    return make


@way
def password_in_url(request: pytest.FixtureRequest, protocol: int) -> Link:
    return link(request.getfixturevalue("socket_server").url, protocol=protocol)


@way
def password_in_options(request: pytest.FixtureRequest, protocol: int) -> Link:
    server: RedisServer = request.getfixturevalue("socket_server")
    options = {"username": "default", "password": server.password, "protocol": protocol}
    return link(f"redis://127.0.0.1:{server.port}/0", **options)


@way
def unix_socket(request: pytest.FixtureRequest, protocol: int) -> Link:
    return link(request.getfixturevalue("socket_server").unix_url, protocol=protocol)


@way
def kombus_socket(request: pytest.FixtureRequest, protocol: int) -> Link:
    server: RedisServer = request.getfixturevalue("socket_server")
    return link(f"redis+socket://{server.socket_path}?virtual_host=0", password=server.password, protocol=protocol)


@way
def valkey(request: pytest.FixtureRequest, protocol: int) -> Link:
    return link(request.getfixturevalue("valkey").url, protocol=protocol)


@way
def tls_checked(request: pytest.FixtureRequest, protocol: int) -> Link:
    tls: TlsServer = request.getfixturevalue("tls")
    return link(f"{tls.url}?{query({'ssl_cert_reqs': 'CERT_REQUIRED', **tls.client_options})}", protocol=protocol)


@way
def tls_unchecked(request: pytest.FixtureRequest, protocol: int) -> Link:
    tls: TlsServer = request.getfixturevalue("tls")
    return link(tls.url, **{**tls.client_options, "ssl_cert_reqs": "CERT_NONE", "protocol": protocol})


@way
def sentinel(request: pytest.FixtureRequest, protocol: int) -> Link:
    made = request.getfixturevalue("sentinels")
    return link(made.url, protocol=protocol, **made.transport_options)


@way
def redis_cluster(request: pytest.FixtureRequest, protocol: int) -> Link:
    made = request.getfixturevalue("redis_cluster")
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in made.nodes)
    return link(f"redis+cluster://{hosts}", protocol=protocol)


BROKERS: dict[str, Callable[[pytest.FixtureRequest], Celery]] = {}


def broker(make: Callable[[pytest.FixtureRequest], Celery]) -> Callable[[pytest.FixtureRequest], Celery]:
    BROKERS[make.__name__] = make
    return make


def app_of(url: str, **conf: object) -> Celery:
    app = Celery("topology", broker=url, set_as_current=False)
    app.conf.update(conf)
    return app


@broker
def plain(request: pytest.FixtureRequest) -> Celery:
    return app_of(request.getfixturevalue("socket_server").url)


@broker
def tls_by_url(request: pytest.FixtureRequest) -> Celery:
    tls: TlsServer = request.getfixturevalue("tls")
    return app_of(f"{tls.url}?{query({'ssl_cert_reqs': 'CERT_REQUIRED', **tls.client_options})}")


@broker
def tls_by_setting(request: pytest.FixtureRequest) -> Celery:
    tls: TlsServer = request.getfixturevalue("tls")
    return app_of(tls.url, broker_use_ssl={**tls.client_options, "ssl_cert_reqs": ssl.CERT_REQUIRED})


@broker
def sentinels_with_options(request: pytest.FixtureRequest) -> Celery:
    made = request.getfixturevalue("sentinels")
    options = {**made.transport_options, "sentinel_kwargs": {"client_name": "beat"}}
    return app_of(made.url, broker_transport_options=options)


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
    hold_the_lease(WAYS[kind](request, protocol))


@pytest.mark.parametrize("kind", BROKERS)
def test_the_lease_at_the_broker(request: pytest.FixtureRequest, kind: str) -> None:
    """With the URL and the options of Celery."""
    hold_the_lease(BrokerLink(BROKERS[kind](request), TIMEOUT))


def test_the_lease_at_a_broker_on_a_socket() -> None:
    with need(lambda: RedisServer(unixsocket=True)) as own:
        hold_the_lease(BrokerLink(app_of(f"redis+socket://{own.socket_path}?virtual_host=0"), TIMEOUT))


def test_presence_in_a_cluster_is_a_shard_channel(request: pytest.FixtureRequest) -> None:
    """The script on the keys' node counts it, and its end is seen at once."""
    way_there = redis_cluster(request, 2)
    with Campaigner(way_there) as replica:
        replica.wait_to_lead()
        assert replica.registered.startswith(f"{{ha-beat:{KEYS.cluster}}}:presence:shard:")
        node = request.getfixturevalue("redis_cluster").node_for(KEYS.lease)
        assert node.admin.execute_command("PUBSUB", "SHARDCHANNELS") == [replica.registered]
        node.admin.client_kill_filter(_type="pubsub")
        replica.wait_for_line("presence_lost")
        replica.wait_to_lead()


def test_a_server_that_is_not_trusted_is_named(tls: TlsServer) -> None:
    """A certificate of an unknown authority causes a log line, no crash."""
    options = {name: value for name, value in tls.client_options.items() if name != "ssl_ca_certs"}
    with Campaigner(link(tls.url, ssl_cert_reqs="CERT_REQUIRED", **options)) as replica:
        replica.wait_for_line("lease_unreachable", "certificate")
