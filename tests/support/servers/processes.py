"""Child processes that don't outlive the tests."""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from tests.support.servers.parts import LOCALHOST, Part, PartMissing, free_port, wait_for


class ServerProcess:
    """Child process in its own process group, with its output in a log file."""

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
        """Return None while it runs, else its exit status (negative: the signal that ended it)."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def send(self, number: int) -> None:
        """Send a signal to the process group, if it still exists."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, timeout: float = 10.0) -> int:
        """Return the exit status; raises subprocess.TimeoutExpired after `timeout` seconds."""
        status = self._popen.wait(timeout)
        _live_processes.discard(self)
        return status

    def stop(self, timeout: float = 10.0, number: int = signal.SIGTERM) -> int:
        """Send a signal, and SIGKILL to the group after `timeout` seconds. Return the exit status."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            self.resume()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Send SIGKILL to the whole group. Return the exit status."""
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


_live_processes: set[ServerProcess] = set()


@atexit.register
def _kill_what_is_left() -> None:
    for process in list(_live_processes):
        process.kill()


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


class Server(Part):
    """Server on its own port of 127.0.0.1, with its own folder. It keeps both over restarts.

    A context manager: started on entry, closed on exit.
    """

    START_SECONDS = 30.0
    STOP_SIGNAL = signal.SIGTERM

    #: Environment and user of the process; None for those of the tests.
    env: Mapping[str, str] | None = None
    user: str | None = None

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.port = free_port()
        # Short, since a unix socket's path has room for about 100 characters.
        self.directory = Path(tempfile.mkdtemp(prefix=f"hab-{kind}-"))
        self.process: ServerProcess | None = None

    @property
    def address(self) -> tuple[str, int]:
        return LOCALHOST, self.port

    @abstractmethod
    def command(self) -> Sequence[object]:
        """Return the command line of the server."""

    def launch(self) -> ServerProcess:
        """Start the process, and return it without waiting until it answers."""
        log = self.directory / "server.log"
        return ServerProcess(self.command(), log, cwd=self.directory, env=self.env, user=self.user)

    @abstractmethod
    def answers(self) -> bool:
        """True once clients are served. May raise a client's exceptions."""

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
        """Stop it cleanly and wait."""
        if self.process is not None:
            self.process.stop(self.START_SECONDS, self.STOP_SIGNAL)

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        if self.process is not None:
            self.process.kill()

    def restart(self, *, down: float = 0.0) -> None:
        """Stop, wait `down` seconds, and start with the same data."""
        self.stop()
        time.sleep(down)
        self.start()

    def pause(self) -> None:
        """Send SIGSTOP: connections stay open, nothing is answered."""
        self._running().pause()

    def resume(self) -> None:
        self._running().resume()

    def revive(self) -> Self:
        """Resume it if it is paused, start it if it has ended."""
        if self.alive:
            self.resume()
        return self.start()

    def close(self) -> None:
        """Kill it and remove its folder. Idempotent."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
