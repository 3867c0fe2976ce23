"""Connection to redbeat's Redis with redbeat's settings, but with short timeouts and without retries."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery
from redbeat.schedulers import ensure_conf
from redis import cluster

from ha_beat.errors import ConfigurationError
from ha_beat.store.connections import link_to

# redis-py does not type these.
ClusterNode: Callable[..., Any] = cluster.ClusterNode
RedisCluster: Any = cluster.RedisCluster

#: Options that redbeat does not pass to the client.
_OWN_OPTIONS = frozenset({"retry_period", "cluster", "sentinels", "service_name", "startup_nodes"})

_CLUSTER_PORT = 30001


@dataclass(frozen=True, slots=True)
class RedBeatKeys:
    """Keys of redbeat with one prefix, and the mark that this package adds."""

    prefix: str
    lock: str

    @property
    def schedule(self) -> str:
        return f"{self.prefix}:schedule"

    @property
    def statics(self) -> str:
        return f"{self.prefix}:statics"

    @property
    def mark(self) -> str:
        return f"{self.prefix}:ha_beat"

    def entry(self, name: str) -> str:
        return self.prefix + name


@dataclass(frozen=True, slots=True)
class RedBeatConnection:
    """Factories for clients of redbeat's Redis."""

    client: Callable[[], Any]
    #: True if two keys may be on different nodes.
    scattered: bool = False
    #: Factory for clients of protocol 2, ``None`` for a Redis Cluster.
    listener: Callable[[], Any] | None = None


def keys_of(app: Celery) -> RedBeatKeys:
    conf = ensure_conf(app)
    return RedBeatKeys(conf.key_prefix, conf.lock_key or "")


def url_of(app: Celery) -> str:
    return str(ensure_conf(app).redis_url)


def connect(app: Celery, timeout: float) -> RedBeatConnection:
    """Return a connection that connects at its first use. ``timeout`` is in seconds, for each command.

    Raises:
        ConfigurationError: redbeat's settings are wrong.
    """
    conf = ensure_conf(app)
    url, options = str(conf.redis_url), dict(conf.redbeat_redis_options or {})
    tls = conf.redis_use_ssl if isinstance(conf.redis_use_ssl, dict) else {}
    keys = keys_of(app)
    if options.get("cluster") or url.startswith("redis-cluster"):
        # A hash tag keeps all keys on one node.
        scattered = not 0 <= keys.prefix.find("{") < keys.prefix.find("}") - 1
        return RedBeatConnection(_ClusterClient(url, options, timeout), scattered)
    if url.startswith("redis-sentinel") and "sentinels" in options:
        addresses = ";".join(f"sentinel://{host}:{port}" for host, port in options["sentinels"])
        given = {"master_name": options.get("service_name", "master"), **_passed(options), **tls}
        if tls:
            given["ssl"] = True
        return _links(addresses, given, timeout, keys)
    # redbeat_redis_options has the broker's options by default, which are not meant for redbeat.
    given = _passed(options) if conf.is_key_in_conf("redbeat_redis_options") or url.startswith("sentinel") else {}
    if url.startswith("rediss"):
        given = {"ssl_cert_reqs": ssl.CERT_REQUIRED, **tls, **given}
    return _links(url, given, timeout, keys)


def _links(url: str, options: Mapping[str, Any], timeout: float, keys: RedBeatKeys) -> RedBeatConnection:
    try:
        link = link_to(url, options, timeout, keys.schedule)
        listener = link_to(url, {**options, "protocol": 2}, timeout, keys.schedule)
        return RedBeatConnection(link.client, listener=listener.client)
    except ConfigurationError as exc:
        raise ConfigurationError(str(exc).replace("ha_beat_redis_", "redbeat_redis_")) from exc


def _passed(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OWN_OPTIONS and value is not None}


class _ClusterClient:
    """Client of a Redis Cluster, made at the first use because it connects."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        self._url = url
        self._nodes = list(options.get("startup_nodes") or [])
        timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        self._options = {**timeouts, **_passed(options), "decode_responses": False}
        self._client: Any = None

    def __call__(self) -> Any:
        if self._client is None:
            if self._url.startswith("redis-cluster"):
                given = self._nodes or [{"host": "localhost", "port": _CLUSTER_PORT}]
                nodes = [ClusterNode(node["host"], int(node["port"])) for node in given]
                self._client = RedisCluster(startup_nodes=nodes, **self._options)
            else:
                self._client = RedisCluster.from_url(self._url, **self._options)
        return self._client
