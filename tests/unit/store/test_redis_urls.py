"""Parsing of URLs and options, without connections."""

import ssl
from typing import Any

import pytest
from celery import Celery
from redis.connection import SSLConnection, UnixDomainSocketConnection

from ha_beat.celery_app import check_topology
from ha_beat.errors import ConfigurationError
from ha_beat.settings import Settings, redact_url
from ha_beat.store.connections import ClusterLink, PoolLink, link_to


def kwargs_of(url: str, **options: Any) -> dict[str, Any]:
    made = link_to(url, options, 1.0, "key")
    assert isinstance(made, PoolLink)
    return {**made.pool.connection_kwargs, "connection_class": made.pool.connection_class}


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("CERT_REQUIRED", ssl.CERT_REQUIRED),
        ("required", ssl.CERT_REQUIRED),
        ("CERT_OPTIONAL", ssl.CERT_OPTIONAL),
        ("CERT_NONE", ssl.CERT_NONE),
        ("none", ssl.CERT_NONE),
        (ssl.CERT_REQUIRED, ssl.CERT_REQUIRED),
        (ssl.CERT_NONE, ssl.CERT_NONE),
    ],
)
def test_certificate_check_has_the_spellings_of_celery(spelled: Any, meant: ssl.VerifyMode) -> None:
    """In the options, from Python or JSON, and in the URL."""
    made = [link_to("rediss://h:1/0", {"ssl_cert_reqs": spelled}, 1.0, "k")]
    if isinstance(spelled, str):
        made.append(link_to(f"rediss://h:1/0?ssl_cert_reqs={spelled}", {}, 1.0, "k"))
    for one in made:
        assert isinstance(one, PoolLink)
        connection = one.pool.make_connection()
        assert isinstance(connection, SSLConnection)
        assert connection.cert_reqs == meant


@pytest.mark.parametrize("url", ["redis+socket:///run/r.sock?virtual_host=3", "unix:///run/r.sock?db=3"])
def test_socket_has_the_spellings_of_kombu_and_redis_py(url: str) -> None:
    kwargs = kwargs_of(url)
    assert kwargs["connection_class"] is UnixDomainSocketConnection
    assert (kwargs["path"], kwargs["db"]) == ("/run/r.sock", 3)


def test_options_win_over_the_url() -> None:
    kwargs = kwargs_of("redis://u:p@h:1/2", username="v", password="q", db=4, protocol="3")
    assert (kwargs["username"], kwargs["password"], kwargs["db"], kwargs["protocol"]) == ("v", "q", 4, 3)


def test_a_link_never_retries_and_has_short_timeouts() -> None:
    kwargs = kwargs_of("redis://h:1/0")
    assert kwargs["retry"]._retries == 0
    assert kwargs["socket_timeout"] == kwargs["socket_connect_timeout"] == 1.0


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("redis://h:1/0", {"pasword": "x"}, "pasword"),
        ("redis://h:1/0?nonsense=1", {}, "nonsense"),
        ("rediss://h:1/0", {"ssl_cert_reqs": "perhaps"}, "perhaps"),
        ("redis://h:1/0?socket_timeout=soon", {}, "socket_timeout"),
        ("sentinel://h:1;sentinel://i:2", {}, "master_name"),
        ("redis+cluster://h:1/2", {}, "database 0"),
        ("redis+cluster://h:port", {}, "ha_beat_redis_url"),
    ],
)
def test_invalid_url_or_option_is_refused_without_connecting(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        link_to(url, options, 1.0, "k")


def test_sentinels_are_read_from_the_url_of_celery() -> None:
    """User name, password and database are those of Redis. Any host of the list may have them."""
    made = link_to("sentinel://u:p%40@a:1;sentinel://u:p%40@[::1];c:3/5", {"master_name": "m"}, 1.0, "k")
    assert isinstance(made, PoolLink)
    kwargs = made.pool.connection_kwargs
    assert (kwargs["username"], kwargs["password"], kwargs["db"]) == ("u", "p@", 5)
    known = [
        (s.connection_pool.connection_kwargs["host"], s.connection_pool.connection_kwargs["port"])
        for s in made.pool.sentinel_manager.sentinels
    ]  # type: ignore[attr-defined]
    assert known == [("a", 1), ("::1", 26379), ("c", 3)]


def test_a_sentinel_that_hangs_leaves_time_for_the_next() -> None:
    """Also with options for the connections of the Sentinels."""
    options = {"master_name": "m", "sentinel_kwargs": {"password": "s"}}
    made = link_to("sentinel://a:1;sentinel://b:2", options, 1.0, "k")
    assert isinstance(made, PoolLink)
    for sentinel in made.pool.sentinel_manager.sentinels:  # type: ignore[attr-defined]
        kwargs = sentinel.connection_pool.connection_kwargs
        assert kwargs["password"] == "s"
        assert kwargs["socket_timeout"] == kwargs["socket_connect_timeout"] == 0.5
        assert kwargs["retry"]._retries == 0


def test_cluster_has_several_nodes() -> None:
    made = link_to("rediss+cluster://u:p@a:7000,b:7001?ssl_cert_reqs=CERT_NONE", {}, 1.0, "k")
    assert isinstance(made, ClusterLink)
    assert made._known == [("a", 7000), ("b", 7001)]
    assert made._kwargs["connection_class"] is SSLConnection
    assert (made._kwargs["username"], made._kwargs["password"]) == ("u", "p")


def test_a_broker_of_sentinels_without_the_primarys_name_is_refused() -> None:
    """kombu would raise at each attempt to connect."""
    app = Celery("c", broker="sentinel://a:1;sentinel://b:2", set_as_current=False)
    with pytest.raises(ConfigurationError, match="master_name"):
        check_topology(app, Settings(cluster="c"))
    app.conf.broker_transport_options = {"master_name": "m"}
    check_topology(app, Settings(cluster="c"))


@pytest.mark.parametrize("url", ["redis+cluster://u:p@a:7000,b:7001", "rediss+cluster://a", "redis+socket:///r.sock"])
def test_the_setting_takes_the_url(url: str) -> None:
    assert Settings(cluster="c", redis_url=url).redis_url == url


def test_a_clusters_password_is_not_shown() -> None:
    assert redact_url("redis+cluster://u:secret@a:7000,b:7001?password=secret") == (
        "redis+cluster://u:***@a:7000,b:7001?password=***"
    )


@pytest.mark.parametrize("url", ["redis+cluster://:se;cret@a:1", "sentinel://:se,cret@a:1", "redis://:se/cret@a:1"])
def test_password_that_was_not_escaped_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        link_to(url, {"master_name": "m"}, 1.0, "k")
    assert "cret" not in str(raised.value)
    assert "'se" not in str(raised.value)
    assert raised.value.__suppress_context__
