"""A replica's log blocks, because stderr is a full pipe. Leadership, metrics and the stop do not wait for it."""

import contextlib
import fcntl
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.cluster import BeatCluster, Replica
from tests.faults.test_hung_leader import SPEC, STALL
from tests.integration.monitoring.support import ask
from tests.support.servers import RedisServer, free_port, wait_for

_F_SETPIPE_SZ = 1031


class PipedBeat:
    """Replica that writes its log to a pipe. The pipe is full until :meth:`read`."""

    def __init__(self, like: Replica, **env: str) -> None:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, _F_SETPIPE_SZ, 4096)
        self.reader = reader
        environment = {**like.env, **env}
        self.process = subprocess.Popen(
            like.command, cwd=like.directory, env=environment, stdout=writer, stderr=writer, start_new_session=True
        )
        os.close(writer)

    def read(self, until: str | None = None) -> str:
        """Return the output of the process until a text, or until its end."""
        text = b""
        while part := os.read(self.reader, 65536):
            text += part
            if until and until.encode() in text:
                break
        return text.decode(errors="replace")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        os.close(self.reader)


def metric(port: int, name: str) -> float | None:
    with contextlib.suppress(OSError):
        lines = ask(port, "/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), None)
    return None


@pytest.mark.slow
def test_leader_with_a_blocked_log_leads_and_releases_in_time(redis_server: RedisServer, tmp_path: Path):
    """It enqueues, shows the blocked log in its metrics, and releases the lease when its main loop hangs."""
    hang, port = tmp_path / "hang", free_port()
    settings = {"lease_ttl": 30, "renew_interval": 1, "stall_timeout": STALL, "http_bind": f"127.0.0.1:{port}"}
    spec = {**SPEC, "noisy": {"every": 0.02}}
    app, env = "tests.support.apps.lazy_app", {"HANG_FILE": str(hang)}
    with BeatCluster(redis_server.url, spec=spec, replicas=2, settings=settings, app=app, env=env) as cluster:
        cluster[0].kill()
        cluster[1].kill()
        piped = PipedBeat(cluster[0])
        try:
            late = 'ha_beat_duty_late_seconds{duty="write_log"}'
            wait_for(lambda: metric(port, late), 40, "the late log", 0.2)
            before = redis_server.admin.llen("celery")
            wait_for(lambda: redis_server.admin.llen("celery") > before + 100, 20, "messages")
            assert ask(port, "/livez").status == 200

            cluster[1].env["HA_BEAT_HTTP_BIND"] = ""
            cluster[1].start()
            cluster[1].wait_for_log("action=leader_seen")
            hang.write_text(cluster[0].name)
            began = time.monotonic()
            cluster.wait_for_leader(other_than=cluster[0], timeout=40)
            assert time.monotonic() - began < STALL + 6
            hang.unlink()
            # A stop does not wait long for the log.
            text = piped.read(until="reason=stalled")
            piped.process.terminate()
            piped.read()
            assert piped.process.wait(20) == 0
            assert "action=term_started" in text
            assert "reason=stalled" in text
        finally:
            piped.close()


def test_last_lines_are_written_at_the_end(redis_server: RedisServer):
    with BeatCluster(redis_server.url, spec={"fast": {"every": 0.2}}, replicas=1) as cluster:
        cluster.wait_for_leader()
        cluster[0].terminate()
        assert "action=term_ended" in cluster[0].log_text()
        assert "reason=shutdown" in cluster[0].log_text()
