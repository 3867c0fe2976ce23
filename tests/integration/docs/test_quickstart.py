"""The quick start, with the project and the commands of its page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.docs.blocks import ROOT, blocks
from tests.support.servers import RedisServer, wait_for

PAGE = "docs/quickstart.md"


def project() -> str:
    """Write the page's `proj.py`."""
    (found,) = (block for block in blocks("python") if block.page == PAGE and 'Celery("proj"' in block.body)
    return found.body


def commands(word: str) -> list[str]:
    lines = [line for block in blocks("sh") if block.page == PAGE for line in block.commands()]
    return [line for line in lines if line.startswith(f"celery -A proj {word}")]


class Terminal:
    """Terminal with one command."""

    def __init__(self, command: str, folder: Path, number: int) -> None:
        self.log = folder / f"terminal-{number}.log"
        env = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "HA_BEAT_"))}
        env["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=folder,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(5)


@pytest.mark.slow
def test_the_quick_start(redis_server: RedisServer, tmp_path: Path):
    """A worker runs the tasks of one of three beats. A killed leader is replaced. Status and doctor find no problem."""
    code = project().replace("redis://127.0.0.1:6379/0", redis_server.url)
    (tmp_path / "proj.py").write_text(code)
    with ExitStack() as stack:
        number = iter(range(100))

        def open_terminal(command: str) -> Terminal:
            terminal = Terminal(command, tmp_path, next(number))
            stack.callback(terminal.close)
            return terminal

        (worker_command,), beat_commands = commands("worker"), commands("beat")
        assert len(beat_commands) == 3
        worker = open_terminal(worker_command)
        beats = [open_terminal(command) for command in beat_commands]
        leader = _leader(beats)
        wait_for(lambda: re.search(r"proj\.tick\[.*succeeded", worker.text), 40, "a task run")
        done = worker.text.count("succeeded")
        for line in commands("ha-beat"):
            asked = open_terminal(line)
            asked.process.wait(60)
            assert asked.process.returncode == 0, f"{line}: {asked.text}"
        os.killpg(leader.process.pid, signal.SIGKILL)
        leader.process.wait(10)
        others = [beat for beat in beats if beat is not leader]
        wait_for(lambda: any("Leading proj in epoch" in beat.text for beat in others), 20, "another beat to lead")
        wait_for(lambda: worker.text.count("succeeded") > done + 1, 20, "more tasks run")


def _leader(beats: list[Terminal]) -> Terminal:
    leads: Callable[[], list[Terminal]] = lambda: [beat for beat in beats if "Leading proj in epoch" in beat.text]  # noqa: E731
    (leader,) = wait_for(leads, 40, "a leader")
    others = [beat for beat in beats if beat is not leader]
    wait_for(lambda: all("Standing by: " in beat.text for beat in others), 40, "two standbys")
    return leader
