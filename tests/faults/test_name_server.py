"""Name server that does not answer while connections must be opened again."""

import os
import time
from pathlib import Path

import pytest

from tests.faults.test_readiness import check, metric
from tests.integration.monitoring.test_replicas import Probed
from tests.support.servers import RedisServer, need, wait_for

#: Module `sitecustomize.py`: while a file exists, names block as with glibc's resolver. Numeric addresses never block.
BLOCKING = """
import os, socket, time
_resolve = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if host == "localhost" and os.path.exists(os.environ["NO_NAMES"]):
        time.sleep(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _resolve(host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.slow
@pytest.mark.parametrize("lease", ["the broker", "another Redis"])
def test_replicas_stay_live_without_a_name_server(tmp_path: Path, lease: str) -> None:
    """Every connection is closed for longer than `stall_timeout`; none is ready. Afterwards a leader enqueues again."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKING)
    no_names = tmp_path / "no-names"
    env = {"NO_NAMES": str(no_names), "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    settings = {"lease_ttl": 3, "stall_timeout": 4}
    with need(RedisServer) as server, need(RedisServer) as other:
        url = f"redis://localhost:{server.port}/0"
        options = {"lease_urls": f"redis://localhost:{other.port}/0"} if lease == "another Redis" else {}
        with Probed(url, replicas=2, env=env, settings=settings, **options) as cluster:
            cluster.settle()
            no_names.touch()
            for each in (server, other):
                each.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                each.admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            until = time.monotonic() + 10.0
            while time.monotonic() < until:
                found = {replica.name: cluster.says(replica, "/livez") for replica in cluster}
                assert set(found.values()) == {200}, found
                assert {cluster.says(replica, "/metrics") for replica in cluster} == {200}
                time.sleep(0.2)
            assert {cluster.says(replica, "/readyz") for replica in cluster} == {503}
            assert {metric(port, "ready") for port in cluster.ports} == {0}
            assert check(cluster) == 2  # Redis is unavailable
            no_names.unlink()
            # A lookup that began earlier may take its full time.
            before = server.admin.llen("celery")
            wait_for(lambda: server.admin.llen("celery") > before + 3, 40, "messages")
            cluster.assert_all_alive()
