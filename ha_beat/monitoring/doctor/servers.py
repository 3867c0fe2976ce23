"""Checks of the servers: the lease's Redis, its replicas and Sentinels, and the broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celery import Celery

from ha_beat.clock import Clock
from ha_beat.dispatch.brokers.adapter import BrokerAdapter
from ha_beat.errors import StoreError, StoreRefused
from ha_beat.exception_text import exception_line
from ha_beat.monitoring.doctor.finding import Finding, fail, ok, warn
from ha_beat.reasons import Level
from ha_beat.settings import redact_url
from ha_beat.store.connections import sentinels_of
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import text
from ha_beat.store.server_facts import min_replicas_set

#: Part of ``maxmemory`` above which memory counts as nearly full.
_NEARLY_FULL = 0.9


def check_redis(client: Any, name: str, on_state_loss: str, clock: Clock) -> Iterator[Finding]:
    """Check that the lease's Redis answers and keeps its data."""
    began = clock.elapsed()
    client.ping()
    took = (clock.elapsed() - began) * 1000
    server = _info(client, "server")
    mode = server.get("redis_mode") or server.get("server_mode", "?")  # the second is Valkey's
    version = server.get("redis_version", "?")
    yield ok("redis", f"{name}, version {version}, {mode}, answered in {took:.1f} ms")
    yield from _memory(_info(client, "memory"))
    yield from _persistence(_info(client, "persistence"), on_state_loss)


def _memory(memory: dict[str, Any]) -> Iterator[Finding]:
    policy = str(memory.get("maxmemory_policy", "?"))
    limit, used = int(memory.get("maxmemory") or 0), int(memory.get("used_memory") or 0)
    if policy.startswith("allkeys"):
        risk = f"{policy}: if its memory is full, Redis may evict the lease, the ledger and queues; set noeviction"
        yield (fail if limit else warn)("eviction policy", risk)
    elif policy != "noeviction":
        yield warn("eviction policy", f"{policy}: set noeviction; the cluster's keys have no TTL")
    else:
        yield ok("eviction policy", policy)
    if limit and used > _NEARLY_FULL * limit:
        yield warn("memory", f"{used / limit:.0%} of maxmemory is used; a full Redis refuses writes")


def _persistence(persistence: dict[str, Any], on_state_loss: str) -> Iterator[Finding]:
    if str(persistence.get("aof_enabled", "0")) != "1":
        risk = (
            f"no append-only file: if Redis restarts, it loses data, and on_state_loss ({on_state_loss!r}) applies; "
            f"set appendonly yes"
        )
        yield warn("persistence", risk)
    else:
        yield ok("persistence", "append-only file is on")
    for name in ("aof_last_write_status", "rdb_last_bgsave_status"):
        if str(persistence.get(name, "ok")) != Level.OK:
            yield fail("persistence", f"{name} is {persistence[name]}: Redis can't write to disk")


def check_failover(client: Any) -> Iterator[Finding]:
    """Check that an old primary stops accepting writes before a failover ends."""
    replication = _info(client, "replication")
    sentinels = sentinels_of(client)
    if not sentinels and not int(replication.get("connected_slaves") or 0):
        return
    max_lag = int(_config(client, "min-replicas-max-lag", "10"))
    if min_replicas_set(replication):
        yield ok("min-replicas-to-write", f"set, with a max lag of {max_lag} s")
    else:
        risk = (
            "not set: a partitioned primary accepts writes after a failover, and an occurrence can be enqueued on "
            "both; set it to 1 or more"
        )
        yield warn("min-replicas-to-write", risk)
    if sentinels:
        yield _down_after(sentinels, str(client.connection_pool.service_name), max_lag)


def _down_after(sentinels: list[Any], primary: str, max_lag: int) -> Finding:
    """Check the ``down-after-milliseconds`` of the first Sentinel that answers."""
    failures = []
    for sentinel in sentinels:
        try:
            with mapped_redis_errors():
                state = sentinel.sentinel_master(primary)
        except StoreError as exc:
            failures.append(str(exc))
            continue
        down_after, enough = float(state["down-after-milliseconds"]) / 1000, max_lag + 1
        if down_after > enough:
            return ok("down-after", f"{down_after:g} s")
        risk = (
            f"{down_after:g} s: must be more than min-replicas-max-lag + 1 s ({enough} s), or a failover can end "
            f"before the old primary stops accepting writes"
        )
        return warn("down-after", risk)
    detail = "; ".join(dict.fromkeys(failures))
    return warn("down-after", f"not checked, because no Sentinel answered: {detail}")


def check_broker(app: Celery, client: Callable[[], Any] | None, timeout: float) -> Finding:
    """Check that a broker that does not hold the lease answers. ``client`` is for a broker that is Redis."""
    name = redact_url(app.connection_for_write().as_uri())
    try:
        if client is not None:
            with mapped_redis_errors():
                client().ping()
        else:
            adapter = BrokerAdapter(app, timeout)
            try:
                adapter.open()
            finally:
                adapter.close()
    except Exception as exc:
        detail = str(exc) if isinstance(exc, StoreError) else exception_line(exc)
        return fail("broker", f"{name} can't be reached: {detail}")
    return ok("broker", f"{name}, answered")


def _info(client: Any, section: str) -> dict[str, Any]:
    found: Any = client.info(section)
    return {text(name): value for name, value in found.items()}


def _config(client: Any, name: str, default: str) -> str:
    """Return a setting of the server, or ``default`` if this user may not read it."""
    try:
        with mapped_redis_errors():
            found = {text(key): text(value) for key, value in client.config_get(name).items()}
    except StoreRefused:
        return default
    return found.get(name, default)
