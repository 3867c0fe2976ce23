"""Redis is unreachable or refuses commands: one log line with the cause, no crash, and recovery."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ha_beat.store.connections import Link
from tests.faults.cluster import BeatCluster
from tests.integration.topologies.replica import KEYS, Campaigner, before_7, cluster_url, do, link
from tests.support.servers import RedisCluster, RedisServer, free_port, need, wait_for

pytestmark = pytest.mark.slow


@contextmanager
def recovering(way: Link, timeout: float = 30.0) -> Iterator[Campaigner]:
    """Yield a replica that leads, and wait until it has recovered."""
    with Campaigner(way) as replica:
        replica.wait_to_lead()
        yield replica
        replica.wait_to_recover(timeout=timeout)


def wait_for_the_end_of_trust(replica: Campaigner) -> None:
    wait_for(lambda: replica.elector.handle.term is None, 15, "the trust to run out")


def test_unreachable(server: RedisServer) -> None:
    with recovering(link(server.url)) as replica:
        server.kill()
        replica.wait_for_line("lease_unreachable", "Connection refused")
        server.start()


def test_a_server_that_hangs(server: RedisServer) -> None:
    with recovering(link(server.url)) as replica:
        server.pause()
        try:
            replica.wait_for_line("lease_unreachable", "imeout")
            wait_for_the_end_of_trust(replica)
        finally:
            server.resume()


#: Rights of the user in most cases.
RIGHTS = "on >right ~* &* +@all"


def test_wrong_password(server: RedisServer) -> None:
    with Campaigner(link(server.url, username="beat", password="right")) as replica:
        replica.wait_for_line("lease_unreachable", "refuses the user name or the password (WRONGPASS")
        do(server, "ACL SETUSER beat", *RIGHTS.split())
        replica.wait_to_recover()


def test_a_missing_right_is_named(server: RedisServer) -> None:
    """Redis does not name the refused command of a script. The user is deleted at last."""
    do(server, "ACL SETUSER beat", *RIGHTS.split())
    with recovering(link(server.url, username="beat", password="right")) as replica:
        do(server, "ACL SETUSER beat -hset")
        replica.wait_for_line("lease_unreachable", "lacks a right (NOPERM", "HSET")
        do(server, "ACL SETUSER beat +hset -evalsha")
        replica.wait_for_line("lease_unreachable", "lacks a right (NOPERM", "evalsha")
        do(server, "ACL SETUSER beat +evalsha")
        replica.wait_to_recover()
        replica.lines.clear()
        do(server, "ACL DELUSER beat")
        replica.wait_for_line("lease_unreachable", "WRONGPASS")
        do(server, "ACL SETUSER beat", *RIGHTS.split())


def test_read_only_replica(server: RedisServer) -> None:
    """A readable lease is campaigned for, refused and logged once, not at each poll."""
    with recovering(link(server.url)) as replica:
        do(server, "REPLICAOF 127.0.0.1", free_port())
        replica.wait_for_line("lease_unreachable", "read-only replica, not the primary (READONLY")
        wait_for_the_end_of_trust(replica)
        time.sleep(4.0)
        assert replica.told("(READONLY") == 1, replica.lines
        assert replica.told("lease_reachable") == 0, replica.lines
        do(server, "REPLICAOF NO ONE")


REPLICATED = ["CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"]
PROTECTED = ["CONFIG SET requirepass new", "CLIENT KILL TYPE normal SKIPME yes", "CLIENT KILL TYPE pubsub"]
TOO_FEW = "too few of its replicas are in sync (NOREPLICAS"


@pytest.mark.parametrize(
    ("refuse", "line", "mend"),
    [
        (PROTECTED, "asks for a password, and none was given (NOAUTH", ["CONFIG SET requirepass", ""]),
        (REPLICATED, "has lost its primary (MASTERDOWN", ["REPLICAOF NO ONE"]),
        (["CONFIG SET min-replicas-to-write 1"], TOO_FEW, ["CONFIG SET min-replicas-to-write 0"]),
    ],
    ids=["password", "replica without its primary", "too few replicas"],
)
def test_server_that_refuses_is_named(server: RedisServer, refuse: list[str], line: str, mend: list[str]) -> None:
    """A password that is set while it leads refuses later connections."""
    with recovering(link(server.url)) as replica:
        for command in refuse:
            do(server, command)
        replica.wait_for_line("lease_unreachable", line)
        do(server, *mend)


def test_data_that_cannot_be_saved() -> None:
    """MISCONF: a folder has the file name of the snapshot."""
    with need(lambda: RedisServer(extra_args=("--dbfilename", "folder"))) as server:
        blocked = server.directory / "folder"
        with recovering(link(server.url)) as replica:
            blocked.mkdir()
            do(server, "CONFIG SET save", "3600 1")
            do(server, "BGSAVE")
            replica.wait_for_line("lease_unreachable", "can't save its data to disk (MISCONF")
            blocked.rmdir()
            wait_for(lambda: do(server, "BGSAVE"), 10, "a snapshot to begin")


def test_loading() -> None:
    """The server returns and loads its snapshot first."""
    slowly = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    with need(RedisServer) as server:
        if before_7(server):
            pytest.skip("a server before Redis 7 can't be made to load slowly")
        with server.admin.pipeline(transaction=False) as pipe:
            for number in range(4000):
                pipe.set(f"filler:{number}", "x" * 20)
            pipe.execute()
        with recovering(link(server.url), timeout=60) as replica:
            server.admin.save()
            server.kill()
            server.extra_args = slowly
            server.process = server.launch()
            replica.wait_for_line("lease_unreachable", "still loading its data (LOADING")


def test_out_of_memory(server: RedisServer) -> None:
    """From Redis 7 on the lease is kept. Occurrences that can't be enqueued are logged and retried."""
    spec = {"fast": {"every": 0.2}}
    with BeatCluster(server.url, spec=spec, replicas=1, settings={"lease_ttl": 3}) as cluster:
        queued = lambda: server.admin.llen("celery")  # noqa: E731
        wait_for(queued, 30, "a message")
        epoch = cluster.epoch()
        do(server, "CONFIG SET maxmemory 1")
        cluster[0].wait_for_log("Redis is out of memory and refuses writes (OOM")
        time.sleep(4.0)
        # Before Redis 7 the lease can't be renewed either.
        lines = [line for line in cluster[0].log_text().splitlines() if "(OOM" in line]
        refused = [line for line in lines if "action=duty_late" not in line]
        assert len(refused) == (2 if before_7(server) else 1)
        do(server, "CONFIG SET maxmemory 0")
        before = queued()
        wait_for(lambda: queued() > before + 3, 20, "messages again")
        assert cluster.epoch() == epoch or before_7(server)
        cluster.assert_all_alive()


def test_a_cluster_with_a_node_gone() -> None:
    """The end of another node stops the whole Redis Cluster until it returns."""
    with need(RedisCluster) as nodes:
        owner = nodes.node_for(KEYS.lease)
        other = next(node for node in nodes.nodes if node is not owner)
        with recovering(link(cluster_url(nodes)), timeout=60) as replica:
            other.kill()
            replica.wait_for_line("lease_unreachable", "does not serve these keys (CLUSTERDOWN", timeout=60)
            other.start()


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, ports: dict[str, int]) -> None:
    """Resolve a name to an address behind which the port changes, as if the address of the name changed."""
    real, address = socket.getaddrinfo, "127.0.0.99"

    def lookup(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host == name:
            return real(address, port, *rest, **options)
        if host == address:
            return real("127.0.0.1", ports["now"], *rest, **options)
        return real(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def test_a_name_that_leads_to_another_server(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old primary stays up, read-only. Connections to it are closed, including the subscribed one."""
    ports = {"now": server.port}
    resolve(monkeypatch, "redis.test", ports)
    with need(RedisServer) as successor, Campaigner(link("redis://redis.test:6379/0")) as replica:
        replica.wait_to_lead()
        ports["now"] = successor.port
        do(server, "REPLICAOF 127.0.0.1", successor.port)
        wait_for(lambda: successor.admin.hget(KEYS.lease, "state") == "held", 30, "to lead at the successor")
        wait_for(lambda: successor.admin.hget(KEYS.lease, "presence"), 30, "to be present there")
        assert do(server, "PUBSUB CHANNELS *:presence:*") == []
