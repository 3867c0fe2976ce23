"""Stepped clock: it changes only the wall clocks of Python and Redis."""

import os
import subprocess
import sys
import time

import pytest

from tests.faults.clock import SteppedClock
from tests.support.servers import RedisServer, need

_PRINT_CLOCKS = """
import sys, time, datetime
for line in sys.stdin:
    now = datetime.datetime.now(datetime.timezone.utc).timestamp()
    print(time.time(), now, time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
"""


def test_python_process_sees_each_step_on_the_wall_clock_only():
    clock = need(SteppedClock)
    with subprocess.Popen(
        [sys.executable, "-c", _PRINT_CLOCKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **clock.env},
    ) as process:
        assert process.stdin
        assert process.stdout
        for offset in (0.0, 3600.0, -3600.0, -0.75, 0.0):
            clock.offset = offset
            process.stdin.write("now\n")
            process.stdin.flush()
            wall, now, monotonic, boottime = map(float, process.stdout.readline().split())
            assert wall - time.time() == pytest.approx(offset, abs=0.4)
            assert now - time.time() == pytest.approx(offset, abs=0.4)
            assert monotonic == pytest.approx(time.monotonic(), abs=0.4)
            assert boottime == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=0.4)
        process.stdin.close()


def test_time_of_redis_jumps_and_keys_expire():
    clock = need(SteppedClock)
    with need(lambda: RedisServer(env=clock.env)) as server:
        server.admin.set("held", "1", ex=15)
        clock.jump(20)
        seconds, _ = server.admin.time()
        assert seconds - time.time() == pytest.approx(20, abs=2)
        assert server.admin.get("held") is None
