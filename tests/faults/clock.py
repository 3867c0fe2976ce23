"""Wall clocks that jump: a preloaded library shifts CLOCK_REALTIME of one running process.

CLOCK_MONOTONIC and CLOCK_BOOTTIME are unchanged, as when an administrator or NTP steps the clock.
"""

import atexit
import functools
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.commands import run
from tests.support.servers import PartMissing, find_program

_SOURCE = Path(__file__).with_name("clock_offset.c")


@functools.cache
def clock_library() -> Path:
    """Compile the library once per run. Raises PartMissing if there is no C compiler or it fails."""
    compiler = find_program("cc", "gcc", "clang")
    folder = Path(tempfile.mkdtemp(prefix="hab-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / "clock_offset.so"
    built = run(compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", target, _SOURCE)
    if built.returncode:
        raise PartMissing(f"the clock preload does not compile: {built.stderr.strip()}")
    return target


class SteppedClock:
    """Wall clock of one process and its children, `offset` seconds ahead of the machine's.

    Start the process with `env` in its environment; set the offset at any time. Raises PartMissing without a
    C compiler.
    """

    def __init__(self, offset: float = 0.0) -> None:
        self.library = clock_library()
        handle, name = tempfile.mkstemp(prefix="offset-", dir=self.library.parent)
        self._file = handle
        self.path = Path(name)
        self._offset = 0.0
        self.offset = offset

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CLOCK_OFFSET_FILE": str(self.path)}

    @property
    def offset(self) -> float:
        """Return the seconds by which it is ahead of the machine's clock (negative: behind)."""
        return self._offset

    @offset.setter
    def offset(self, seconds: float) -> None:
        self._offset = seconds
        os.pwrite(self._file, struct.pack("=d", seconds), 0)

    def jump(self, seconds: float) -> None:
        """Step the clock by some seconds."""
        self.offset += seconds


def drift_together(clocks: Sequence[tuple[SteppedClock, float]], seconds: float) -> None:
    """Let each clock gain its rate in seconds per second (negative: lose), for `seconds`. Blocks for that time."""
    began = time.monotonic()
    offsets = [(clock, rate, clock.offset) for clock, rate in clocks]
    while (passed := time.monotonic() - began) < seconds:
        for clock, rate, offset in offsets:
            clock.offset = offset + rate * passed
        time.sleep(0.01)
