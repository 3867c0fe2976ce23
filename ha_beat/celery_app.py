"""Celery app of a replica or a worker: its settings, its topology, its identity and its connections to Redis."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery import Celery

from ha_beat.errors import ConfigurationError
from ha_beat.exception_text import keep_secret
from ha_beat.settings import Settings, ha_beat_keys, redact_url, secrets_in
from ha_beat.store.connections import Link, link_to
from ha_beat.store.keys import Keys

if TYPE_CHECKING:
    import redis

    from ha_beat.dispatch.brokers.redis_link import BrokerLink


#: Celery's settings that may contain passwords.
_WITH_SECRETS = (
    *("broker_url", "broker_read_url", "broker_write_url", "broker_transport_options"),
    *("result_backend", "result_backend_transport_options", "cache_backend"),
)


def load_settings(app: Celery) -> Settings:
    """Return the settings of this process, from the app and the environment. From now on their secrets are masked.

    Raises:
        ConfigurationError: a setting is wrong. The message has one line for each.
    """
    settings = Settings.load(ha_beat_keys(app.conf), os.environ, default_cluster=app.main or "celery")
    for value in (settings.redis_url, settings.redis_options, *(app.conf.get(name) for name in _WITH_SECRETS)):
        for secret in secrets_in(value):
            keep_secret(secret)
    return settings


def check_topology(app: Celery, settings: Settings) -> None:
    """Refuse an app that cannot be scheduled safely. Connects to nothing.

    Raises:
        ConfigurationError: no Redis can hold the lease, its options are wrong, or tasks would run inside beat.
    """
    if app.conf.task_always_eager:
        raise ConfigurationError(
            "task_always_eager is on, so that tasks would run inside beat and nothing would be enqueued: turn it off"
        )
    connection = app.connection_for_write()
    if settings.redis_url is None and connection.transport.driver_type != "redis":
        raise ConfigurationError(
            f"the broker {redact_url(connection.as_uri())} is not Redis, and the lease must be in Redis: set "
            f"ha_beat_redis_url"
        )
    if "sentinel" in str(connection.transport_cls) and not (connection.transport_options or {}).get("master_name"):
        raise ConfigurationError("broker_transport_options: a sentinel:// broker needs 'master_name'")
    lease_link(app, settings)  # raises for options that redis-py does not know


def broker_is_redis(app: Celery) -> bool:
    return bool(app.connection_for_write().transport.driver_type == "redis")


def broker_list(app: Celery) -> list[str]:
    """Return the brokers between which Celery fails over, as URLs without secrets; empty if there is only one.

    The Sentinels of one primary are one broker.
    """
    connection = app.connection_for_write()
    if "sentinel" in str(connection.transport_cls):
        return []
    urls = list(dict.fromkeys(redact_url(url) for url in connection.alt))
    return urls if len(urls) > 1 else []


def ignored_brokers(app: Celery, settings: Settings) -> tuple[str, str] | None:
    """Return the broker that holds the lease, and the other brokers of the list, which are never used.

    Return ``None`` if there are none, or if the lease is in another Redis: then the cluster fails over between the
    brokers as Celery does.
    """
    brokers = broker_list(app)
    return (brokers[0], ", ".join(brokers[1:])) if brokers and settings.redis_url is None else None


def lease_link(app: Celery, settings: Settings) -> Link:
    """Return a new link to the Redis that holds the lease. It connects at its first use."""
    if settings.redis_url is not None:
        key = Keys(settings.cluster).lease
        return link_to(settings.redis_url, settings.redis_options, settings.command_timeout, key)
    return _broker_link(app, settings)


def broker_client(app: Celery, settings: Settings) -> Callable[[], redis.Redis] | None:
    """Return a factory for clients of the broker's Redis, or ``None`` if the broker is not Redis."""
    return _broker_link(app, settings).client if broker_is_redis(app) else None


def _broker_link(app: Celery, settings: Settings) -> BrokerLink:
    # Workers import this module. With `ha_beat_redis_url` they need nothing of `dispatch`.
    from ha_beat.dispatch.brokers.redis_link import BrokerLink

    return BrokerLink(app, settings.command_timeout, failover=settings.redis_url is not None)


def lease_redis_name(app: Celery, settings: Settings) -> str:
    """Return the URL of the lease's Redis without secrets. It is the same on all replicas of a cluster."""
    return redact_url(settings.redis_url or app.connection_for_write().as_uri())


def fingerprint(app: Celery) -> str:
    """Return a text that differs between two apps with one cluster name, but not between releases of one app."""
    source = getattr(app, "_config_source", None)
    configured_by = source if isinstance(source, str) else ""
    settings_module = os.environ.get("DJANGO_SETTINGS_MODULE", "")
    return "/".join(part for part in (app.main or "-", configured_by, settings_module) if part)
