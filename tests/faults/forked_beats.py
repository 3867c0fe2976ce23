"""Real beats that start fast: each is a fork of this process, which has already done the imports.

    python -m tests.faults.forked_beats FOLDER COUNT

After the fork each equals `celery beat -S ha_beat`: a process with its own connections, thread, identity and log (in
FOLDER). Prints `NAME PID` for each and keeps running; all end with this process's group.
"""

import os
import sys
import time
from importlib import import_module
from pathlib import Path

from tests.faults.cluster import ha_scheduler

APP = "tests.support.apps.tick_app"


def beat(name: str, folder: Path) -> None:
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["HA_BEAT_REPLICA"] = name
    sys.argv = ["celery", "-A", APP, "beat", "-S", ha_scheduler(), "-l", "INFO", "--pidfile="]
    sys.argv += ["-s", str(folder / f"{name}.schedule")]
    import_module("celery.__main__").main()


def main(folder: str, count: str) -> None:
    for module in ("celery.__main__", "celery.bin.beat", "celery.apps.beat", "kombu.transport.redis", APP):
        import_module(module)
    import_module(ha_scheduler().partition(":")[0] if ":" in ha_scheduler() else "ha_beat.scheduler")
    for number in range(int(count)):
        name = f"beat-{number:02d}"
        pid = os.fork()
        if pid == 0:
            beat(name, Path(folder))
            os._exit(0)
        print(name, pid, flush=True)
    while True:
        time.sleep(0.05)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
