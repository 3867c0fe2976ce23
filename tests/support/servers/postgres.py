"""PostgreSQL."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

from tests.support.servers.parts import LOCALHOST, PartMissing
from tests.support.servers.processes import Server, find_program


class Postgres(Server):
    """PostgreSQL server with an empty database `postgres`. All clients on 127.0.0.1 are trusted."""

    START_SECONDS = 60.0
    STOP_SIGNAL = signal.SIGINT  # 'fast': does not wait for clients

    def __init__(self) -> None:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        initdb = find_program("initdb", folders=folders)
        self.binary = find_program("postgres", folders=[initdb.parent, *folders])
        self.user = self._unprivileged_user()
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
        """Return the user to run PostgreSQL as, since root can't; None for the current user."""
        if os.geteuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_name
        raise PartMissing("PostgreSQL does not run as root, and there is no other user")

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{LOCALHOST}:{self.port}/postgres"

    @property
    def sqlalchemy_url(self) -> str:
        return self.url.replace("postgresql:", "postgresql+psycopg:")

    def execute(self, *statements: str) -> None:
        """Execute statements, each in a transaction, as the superuser."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    @property
    def django_database(self) -> dict[str, Any]:
        """Return an entry for Django's DATABASES."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": LOCALHOST,
            "PORT": str(self.port),
        }

    def command(self) -> list[object]:
        return [
            *(self.binary, "-D", self.data, "-p", self.port, "-h", LOCALHOST, "-k", self.directory),
            *("-c", "fsync=off", "-c", "max_connections=100"),
        ]

    def answers(self) -> bool:
        """True if a start-up packet is answered with an authentication request rather than 'starting up'."""
        with socket.create_connection(self.address, timeout=1) as probe:
            probe.settimeout(2)
            body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
            probe.sendall(struct.pack("!i", len(body) + 4) + body)
            return probe.recv(1) == b"R"
