"""RabbitMQ."""

import os
import subprocess
from pathlib import Path
from typing import Self

import amqp

from tests.support.servers.parts import LOCALHOST, free_port
from tests.support.servers.processes import Server, ServerProcess, find_program


class RabbitMQ(Server):
    """RabbitMQ node with its own epmd, cookie and database; starts in about ten seconds. Persistent over restarts."""

    START_SECONDS = 90.0

    _FOLDERS = (Path("/usr/lib/rabbitmq/bin"), Path("/opt/rabbitmq/sbin"))

    def __init__(self) -> None:
        # Debian's scripts on PATH change user and folder. The wrapped scripts do not.
        self.binary = find_program("rabbitmq-server", folders=self._FOLDERS)
        self.control = find_program("rabbitmqctl", folders=self._FOLDERS)
        self.epmd_binary = find_program(
            "epmd", folders=[*Path("/usr/lib/erlang").glob("erts-*/bin"), Path("/usr/lib/erlang/bin")]
        )
        self.epmd_port = free_port()
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
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "ERL_CRASH_DUMP": f"{folder}/erl_crash.dump",  # else in the working directory
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        self._epmd: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{LOCALHOST}:{self.port}//"

    def command(self) -> list[object]:
        return [self.binary]

    def start(self, timeout: float | None = None) -> Self:
        if self._epmd is None or not self._epmd.alive:
            # A node would start a daemon that outlives it.
            command = [self.epmd_binary, "-port", self.epmd_port, "-address", LOCALHOST]
            self._epmd = ServerProcess(command, self.directory / "epmd.log", env=self.env)
        return super().start(timeout)

    def answers(self) -> bool:
        """True once it takes a login. RabbitMQ's tools would take up to a minute to answer."""
        with amqp.Connection(f"{LOCALHOST}:{self.port}", connect_timeout=5, read_timeout=5) as probe:
            return bool(probe.connected)

    def run(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of RabbitMQ's command line tools (`control`) against this node."""
        return subprocess.run(
            [program, *arguments],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None
