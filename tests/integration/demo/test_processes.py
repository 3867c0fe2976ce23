"""Child processes of the demo: they end with it, and use only its Redis."""

import os
import subprocess
import sys

import pytest

from ha_beat.demo import processes
from ha_beat.demo.processes import Child, DemoError, child_environment, end, find_server
from tests.support.servers import wait_for


def python_child(tmp_path, *lines: str) -> Child:
    return Child("child", [sys.executable, "-c", "\n".join(lines)], tmp_path, os.environ)


def gone(pid: int) -> bool:
    """True if the process has ended; a zombie keeps its pid until its parent waits."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()[:1] in ("", "Z")


def test_child_that_ignores_sigterm_is_killed(tmp_path):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = python_child(tmp_path, "import signal, time", ignore, "print('up', flush=True)", "time.sleep(600)")
    child.start()
    wait_for(lambda: "up" in child.log_tail(), 20)
    end([child], 0.3)
    assert not child.alive
    assert child.exit_status == -9


def test_grandchild_ends_with_its_group(tmp_path):
    start = "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)"
    child = python_child(tmp_path, "import subprocess, sys, time", start, "time.sleep(600)")
    child.start()
    wait_for(lambda: child.log_tail().strip().isdigit(), 20)
    grandchild = int(child.log_tail())
    end([child], 5.0)
    wait_for(lambda: gone(grandchild), 20)


def test_ending_a_child_that_was_not_started_does_nothing(tmp_path):
    end([python_child(tmp_path, "")], 0.0)


def test_missing_server_is_an_error_that_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "_embedded_server", lambda: None)
    with pytest.raises(DemoError, match=r"ha-beat\[demo\]"):
        find_server({"PATH": str(tmp_path)})
    with pytest.raises(DemoError, match="REDIS_SERVER"):
        find_server({"REDIS_SERVER": "/nowhere/redis-server"})


def test_environment_of_children_names_no_other_redis():
    """``CELERY_BROKER_URL`` and ``HA_BEAT_REDIS_URL`` would override the demo's settings."""
    names = ("CELERY_BROKER_URL", "HA_BEAT_REDIS_URL")
    env = child_environment({**dict.fromkeys(names, "redis://production/0"), "HOME": "/h"}, "redis://127.0.0.1:5/0")
    assert "production" not in " ".join(env.values())
    assert env["HOME"] == "/h"
