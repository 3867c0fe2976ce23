"""Scheduler on platforms that lack functions of Linux."""

import subprocess
import sys

from tests.support.servers import RedisServer

#: Removes what Windows lacks after the import of Celery, which looks at `sys.platform`. Then it lets beat tick.
PROGRAM = """
import os, signal, sys, time
import asyncio, celery.apps.beat, kombu.transport.redis, redis
url, *lacking = sys.argv[1:]
for name in lacking:
    module, _, what = name.partition(".")
    if what:
        delattr(sys.modules[module], what)
    else:
        sys.modules[module] = None
app = celery.Celery("elsewhere", broker=url)
app.conf.update(beat_schedule={"e": {"task": "t", "schedule": 0.1}}, ha_beat_http_bind="127.0.0.1:0")
from ha_beat.scheduler import HAScheduler
scheduler, until = HAScheduler(app), time.monotonic() + 20
while not redis.Redis.from_url(url).llen("celery") and time.monotonic() < until:
    scheduler.tick()
print(redis.Redis.from_url(url).llen("celery") > 0)
scheduler.close(); scheduler.close()
"""

WINDOWS = [
    *("fcntl", "pwd", "grp", "resource", "termios"),
    *("time.clock_gettime", *(f"time.CLOCK_{name}" for name in ("BOOTTIME", "MONOTONIC", "REALTIME"))),
    *(f"os.{name}" for name in ("fork", "register_at_fork", "getuid", "geteuid", "killpg", "setsid", "uname")),
    *(f"signal.{name}" for name in ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT", "SIGUSR1", "SIGCHLD", "SIGPIPE")),
]


def test_beat_runs_without_what_windows_lacks(shared_redis: RedisServer):
    """Clocks by number, forks, most signals."""
    command = [sys.executable, "-c", PROGRAM, shared_redis.url, *WINDOWS]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ran.stdout.split() == ["True"], ran.stderr[-2000:]
