"""Facts about the Redis server that decide whether it may lose data, or has lost some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ha_beat.errors import StoreRefused
from ha_beat.reasons import RedisRisk
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import text

if TYPE_CHECKING:
    import redis

#: Default of ``min-replicas-max-lag`` in Redis, in seconds.
_USUAL_MAX_LAG = 10.0


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts that decide which writes a new server process may lack.

    ``append_only``: it writes an append-only file. ``started_at``: it had started by then, in scheduling time.
    ``promoted``: it was a replica before. ``min_replicas``: it refuses writes without replicas. A partitioned primary
    then accepts writes for ``max_lag`` more seconds.
    """

    append_only: bool
    started_at: datetime
    promoted: bool = False
    min_replicas: bool = False
    max_lag: float = _USUAL_MAX_LAG


def read_server_facts(client: redis.Redis, now: datetime) -> ServerFacts:
    """Read the facts. ``now`` is the scheduling time.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    with mapped_redis_errors():
        info: Mapping[str, Any] = client.info("everything")
    # Redis reports whole seconds, so the server may be up to one second younger.
    up = timedelta(seconds=max(int(info.get("uptime_in_seconds", 0)) - 1, 0))
    min_replicas = min_replicas_set(info)
    return ServerFacts(
        append_only=bool(int(info.get("aof_enabled", 0))),
        started_at=now - up,
        promoted=int(info.get("second_repl_offset", -1)) >= 0,
        min_replicas=min_replicas,
        max_lag=_max_lag(client) if min_replicas else _USUAL_MAX_LAG,
    )


def _max_lag(client: redis.Redis) -> float:
    """Return the server's setting, or Redis' default if the user may not read it."""
    try:
        with mapped_redis_errors():
            found: Any = client.config_get("min-replicas-max-lag")
        return float(found["min-replicas-max-lag"])
    except (StoreRefused, KeyError, ValueError):
        return _USUAL_MAX_LAG


def min_replicas_set(replication: Mapping[str, Any]) -> bool:
    """True if ``min-replicas-to-write`` is set, by the server's ``INFO replication``, which needs no other right."""
    return "min_slaves_good_slaves" in replication


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings that decide whether the server may lose data; ``""`` or ``None`` if unknown."""

    eviction_policy: str = ""
    append_only_file: bool | None = None
    #: It has replicas, and accepts writes without them.
    writes_alone: bool = False

    def risks(self) -> list[RedisRisk]:
        """Return how a server with these settings may lose the lease and the ledger."""
        risks = {
            RedisRisk.EVICTION: self.eviction_policy.startswith("allkeys"),
            RedisRisk.NO_APPEND_ONLY_FILE: self.append_only_file is False,
            RedisRisk.NO_MIN_REPLICAS: self.writes_alone,
        }
        return [risk for risk, exists in risks.items() if exists]


def read_server_settings(client: redis.Redis) -> ServerSettings:
    """Read the settings.

    Raises:
        StoreError: Redis did not answer or refused.
    """
    with mapped_redis_errors():
        memory: Any = client.info("memory")
        persistence: Any = client.info("persistence")
        replication: Any = client.info("replication")
    aof = persistence.get("aof_enabled")
    return ServerSettings(
        eviction_policy=text(memory.get("maxmemory_policy", "")) if memory.get("maxmemory") else "",
        append_only_file=None if aof is None else bool(aof),
        writes_alone=bool(replication.get("connected_slaves")) and not min_replicas_set(replication),
    )
