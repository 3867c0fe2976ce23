"""Quick start, with the project and the commands of its page."""

import json
import re
import sys
from contextlib import ExitStack

import pytest

from tests.faults.cluster import base_environment
from tests.integration.docs.blocks import blocks
from tests.support.commands import output
from tests.support.servers import ServerProcess, wait_for

PAGE = "docs/quickstart.md"

STATUS = (sys.executable, "-m", "celery", "-A", "proj", "ha-beat", "status", "--json")


def commands(word: str) -> list[str]:
    lines = [line for block in blocks("sh") if block.page == PAGE for line in block.commands()]
    return [line for line in lines if line.startswith(f"celery -A proj {word}")]


@pytest.mark.slow
def test_quick_start_runs_tasks_and_replaces_a_killed_leader(redis_server, tmp_path):
    """With a worker and three beats. Status and doctor find no problem."""
    (project,) = (block.body for block in blocks("python") if block.page == PAGE and 'Celery("proj"' in block.body)
    (tmp_path / "proj.py").write_text(project.replace("redis://127.0.0.1:6379/0", redis_server.url))
    env = base_environment()
    with ExitStack() as stack:
        logs = (tmp_path / f"{number}.log" for number in range(100))

        def start(command: str) -> ServerProcess:
            process = ServerProcess([sys.executable, "-m", *command.split()], next(logs), cwd=tmp_path, env=env)
            stack.callback(process.stop, 15)
            return process

        (worker_command,) = commands("worker")
        worker, beats = start(worker_command), [start(command) for command in commands("beat")]
        assert len(beats) == 3

        def members() -> dict[str, list[ServerProcess]]:
            status = json.loads(output(*STATUS, cwd=tmp_path, env=env))
            found: dict[str, list[ServerProcess]] = {"leader": [], "standby": []}
            for member in status["members"]:
                found[member["role"]] += [beat for beat in beats if beat.pid == member["pid"]]
            return found

        wait_for(lambda: len(members()["leader"]) == 1 and len(members()["standby"]) == 2, 40, "a leader, two standbys")
        (leader,) = members()["leader"]
        wait_for(lambda: re.search(r"proj\.tick\[.*succeeded", worker.log_text()), 40, "a task run")
        done = worker.log_text().count("succeeded")
        for line in commands("ha-beat"):
            process = start(line)
            assert process.wait(60) == 0, f"{line}: {process.log_text()}"
        leader.kill()
        beats.remove(leader)
        wait_for(lambda: members()["leader"], 20, "another beat to lead")
        wait_for(lambda: worker.log_text().count("succeeded") > done + 1, 20, "more tasks run")
