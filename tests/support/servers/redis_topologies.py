"""Several Redis servers, with Sentinels or as a Redis Cluster."""

from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import quote

import redis

from tests.support.servers.parts import LOCALHOST, Part, free_port, wait_for
from tests.support.servers.processes import Server
from tests.support.servers.redis_server import RedisServer


class Sentinel(Server):
    """One of three Sentinels that watch a master."""

    def __init__(self, master: RedisServer, name: str, down_after: float) -> None:
        self.binary = master.binary
        super().__init__("sentinel")
        lines = [
            f"port {self.port}",
            f"bind {LOCALHOST}",
            f"dir {self.directory}",
            f"sentinel monitor {name} {LOCALHOST} {master.port} 2",
            f"sentinel down-after-milliseconds {name} {int(down_after * 1000)}",
            f"sentinel failover-timeout {name} 3000",
            f"sentinel parallel-syncs {name} 2",
            *([f"sentinel auth-pass {name} {master.password}"] if master.password else []),
        ]
        self.config = self.directory / "sentinel.conf"
        self.config.write_text("\n".join(lines) + "\n")

    def command(self) -> list[object]:
        # redis-sentinel accepts --sentinel too; valkey and redis-server need it.
        return [self.binary, self.config, "--sentinel"]

    def client(self) -> redis.Redis:
        return redis.Redis(host=LOCALHOST, port=self.port, decode_responses=True, socket_timeout=2.0)

    def answers(self) -> bool:
        with self.client() as probe:
            return bool(probe.ping())


class SentinelCluster(Part):
    """Master, its replica and three Sentinels. A context manager: all are up and connected on entry.

    `down_after` is in seconds. `node_args` go to both data nodes (such as `--min-replicas-to-write 1`).
    """

    name = "ha"

    def __init__(self, *, down_after: float = 1.0, password: str | None = None, node_args: Sequence[str] = ()) -> None:
        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *node_args)
        first = RedisServer(password=password, extra_args=fast)
        follow = ("--replicaof", f"{LOCALHOST} {first.port}")
        self.nodes = [first, RedisServer(password=password, extra_args=(*fast, *follow))]
        self.sentinels = [Sentinel(first, self.name, down_after) for _ in range(3)]

    @property
    def url(self) -> str:
        """Return Celery's URL; `master_name` goes into broker_transport_options (`transport_options`)."""
        password = self.nodes[0].password
        user = f":{quote(password, safe='')}@" if password else ""
        return ";".join(f"sentinel://{user}{LOCALHOST}:{one.port}/0" for one in self.sentinels)

    @property
    def transport_options(self) -> dict[str, Any]:
        return {"master_name": self.name}

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        return [(LOCALHOST, one.port) for one in self.sentinels]

    def _ask(self) -> dict[str, Any]:
        """Return a running Sentinel's view of the master."""
        for sentinel in self.sentinels:
            if sentinel.alive:
                with sentinel.client() as client:
                    return client.sentinel_master(self.name)
        raise RuntimeError("no Sentinel is alive")

    @property
    def master(self) -> RedisServer:
        """Return the current master by the Sentinels."""
        port = int(self._ask()["port"])
        return next(node for node in self.nodes if node.port == port)

    @property
    def replicas(self) -> list[RedisServer]:
        master = self.master
        return [node for node in self.nodes if node is not master]

    def wait_until_synced(self, timeout: float = 20.0) -> None:
        """Wait until every running replica has all writes of the master."""

        def synced() -> bool:
            master = self.master
            offset = master.admin.info("replication")["master_repl_offset"]
            states = [one.admin.info("replication") for one in self.replicas if one.alive]
            return all(s["master_link_status"] == "up" and s["slave_repl_offset"] >= offset for s in states)

        wait_for(synced, timeout, "replication")

    def wait_for_failover(self, old: RedisServer, timeout: float = 30.0) -> RedisServer:
        """Wait until all Sentinels agree on another master than `old` and it accepts writes."""

        def another() -> RedisServer | None:
            ports = set()
            for sentinel in self.sentinels:
                if sentinel.alive:
                    with sentinel.client() as client:
                        ports.add(int(client.sentinel_master(self.name)["port"]))
            if len(ports) != 1 or old.port in ports:
                return None
            new = self.master
            return new if new.admin.role()[0] == "master" else None

        return wait_for(another, timeout, "a failover")

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        for sentinel in self.sentinels:
            sentinel.start()

        def acquainted() -> bool:
            state = self._ask()
            known = int(state["num-other-sentinels"]), int(state["num-slaves"])
            return known == (len(self.sentinels) - 1, len(self.nodes) - 1)

        wait_for(acquainted, 30, "the Sentinels to find each other and the replicas")
        self.wait_until_synced()
        return self

    def close(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.close()


class RedisCluster(Part):
    """Redis Cluster of three masters without replicas. A context manager: all slots are served on entry."""

    SLOTS = 16384

    def __init__(self) -> None:
        self._buses = [str(free_port()) for _ in range(3)]
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [RedisServer(extra_args=(*options, "--cluster-port", bus)) for bus in self._buses]
        self._joined = False

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def client(self, **options: Any) -> redis.RedisCluster:
        return redis.RedisCluster.from_url(self.url, **{"decode_responses": True, **options})

    def node_for(self, key: str) -> RedisServer:
        """Return the node that serves this key."""
        slot = int(self.nodes[0].admin.execute_command("CLUSTER KEYSLOT", key))
        for first, last, (_, port, *_rest), *_replicas in self.nodes[0].admin.execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == int(port))
        raise RuntimeError(f"no node serves slot {slot}")

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        if not self._joined:
            self._join()
            self._joined = True
        return self

    def _join(self) -> None:
        count = len(self.nodes)
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            slots = range(number * self.SLOTS // count, (number + 1) * self.SLOTS // count)
            node.admin.execute_command("CLUSTER ADDSLOTS", *slots)
            node.admin.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if node is not first:
                node.admin.execute_command("CLUSTER MEET", LOCALHOST, first.port, self._buses[0])

        def whole() -> bool:
            texts = [_info_text(node.admin.execute_command("CLUSTER INFO")) for node in self.nodes]
            wanted = ("cluster_state:ok", f"cluster_known_nodes:{count}", f"cluster_slots_ok:{self.SLOTS}")
            return all(line in text for text in texts for line in wanted)

        wait_for(whole, 30, "the cluster's nodes to meet")

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _info_text(answer: object) -> str:
    """Return CLUSTER INFO as lines; redis-py parses it into a mapping."""
    if isinstance(answer, dict):
        return "\n".join(f"{name}:{value}" for name, value in answer.items())
    return str(answer)
