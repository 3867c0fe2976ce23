"""Processor time and memory of processes, read from /proc."""

import os
import time
from collections.abc import Sequence
from pathlib import Path


def processor_seconds(*pids: int) -> float:
    """Return the processor seconds that the processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def shares_of_a_core(pids: Sequence[int], seconds: float) -> list[float]:
    """Watch processes for some seconds and return the share of one core that each used, in percent."""
    before, since = [processor_seconds(pid) for pid in pids], time.monotonic()
    time.sleep(seconds)
    lasted = time.monotonic() - since
    return [100 * (processor_seconds(pid) - spent) / lasted for pid, spent in zip(pids, before, strict=True)]


def memory(pid: int) -> float:
    """Return the resident memory in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024
