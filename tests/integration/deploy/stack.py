"""The Compose file, brought up for real beside whatever else runs on this machine, and what its worker ran."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import wait_for

ROOT = Path(__file__).parents[3]


def skip_without_docker() -> None:
    """Skip where no Docker engine with Compose answers; on CI too, where none runs."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command here (CI has none either)")
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if asked.returncode:
            pytest.skip(f"no Docker engine with Compose answers (none runs on CI): {asked.stderr.strip()[-200:]}")


class Stack:
    """A running copy of docker-compose.yml with the counted schedule."""

    def __init__(self, folder: Path) -> None:
        self.counted = folder / "counted"
        self.counted.mkdir()
        self.counted.chmod(0o777)  # the worker in its container is another user
        self.project = f"ha-beat-test-{os.getpid()}"
        self.schedule = "first"
        self.scale = 3

    # --- Compose

    def docker(self, *arguments: str, timeout: float = 120) -> str:
        done = subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            env=self._environ(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout[-2000:]} {done.stderr[-3000:]}"
        return done.stdout

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        return self.docker("compose", *arguments, timeout=timeout)

    def _environ(self) -> Mapping[str, str]:
        return os.environ | {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": "docker-compose.yml:tests/integration/deploy/counted/compose.yml",
            "IMAGE": "ha-beat-under-test",
            "WEB_PORT": "0",
            "BEAT_PORTS": "0",
            "COUNTED": str(self.counted),
            "COUNTED_SCHEDULE": self.schedule,
        }

    def complaints(self) -> list[str]:
        """What the latest healthchecks of unhealthy containers said."""
        health = {each: self.state(each).get("Health", {}) for each in self.containers()}
        return [str(told["Log"][-2:]) for told in health.values() if told.get("Status") == "unhealthy"]

    def up(self, *, scale: int = 3) -> None:
        """Start what is not running, and wait until every healthcheck has passed."""
        self.scale = scale
        self.compose("up", "-d", "--no-build", "--wait", "--scale", f"beat={scale}")

    def roll(self) -> str:
        """Replace the replicas by the script that we ship; what it said."""
        done = subprocess.run(
            [str(ROOT / "deploy" / "rolling-update"), "beat"],
            cwd=ROOT,
            env=self._environ(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]} {done.stderr[-3000:]} {self.complaints()}"
        return done.stderr

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5")

    def containers(self, service: str = "beat") -> list[str]:
        return self.compose("ps", "-q", service).split()

    def state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", "--format", "{{json .State}}", container))
        return found

    # --- ha_beat

    def cli(self, *arguments: str) -> Any:
        out = self.compose("exec", "-T", "worker", "celery", "-A", "example", "ha-beat", *arguments, "--json")
        return json.loads(out)

    def leader(self) -> tuple[str, str]:
        """The container that leads, and its pid inside."""
        host, pid, _ = self.cli("status")["leader"].split(":")
        return next(each for each in self.containers() if each.startswith(host)), pid

    def history(self) -> list[dict[str, Any]]:
        """The journal, the oldest record first."""
        return list(reversed(self.cli("history", "--limit", "100000")))

    def acquired_after(self, epoch: int, within: float = 40) -> dict[str, Any]:
        """The record of the first term after that epoch. `within` is in seconds."""

        def look() -> dict[str, Any] | None:
            terms = (each for each in self.history() if each["kind"] == "term" and each["event"] == "acquired")
            return next((term for term in terms if term["epoch"] > epoch), None)

        return wait_for(look, timeout=within, what=f"a term after epoch {epoch}", interval=0.5)

    def epoch(self) -> int:
        found: int = self.cli("status")["lease"]["epoch"]
        return found

    # --- Counting

    def runs(self) -> list[dict[str, str]]:
        file = self.counted / "runs"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait_until_caught_up(self, within: float = 60) -> datetime:
        """Wait until the worker has run what is due now; return that instant."""
        now = datetime.now(UTC)

        def caught_up() -> bool:
            return any(datetime.fromisoformat(run["at"]) > now for run in self.runs())

        wait_for(caught_up, timeout=within, what="the worker to have run what was due", interval=0.2)
        time.sleep(1.5)  # two processes of the worker: the one may be a little behind the other
        return now

    def count(self) -> tuple[int, list[str], list[datetime]]:
        """What `tally` finds in the worker's runs until now."""
        until = self.wait_until_caught_up()
        return tally(self.runs(), until)


def tally(runs: list[dict[str, str]], until: datetime) -> tuple[int, list[str], list[datetime]]:
    """How many instants of every-second have come, what ran twice, and which instants never ran."""
    twice = [task for task, times in Counter(run["id"] for run in runs).items() if times > 1]
    for entry in {run["entry"] for run in runs}:
        instants = Counter(run["at"] for run in runs if run["entry"] == entry)
        twice += [f"{entry} {at}" for at, times in instants.items() if times > 1]
    ran = {datetime.fromisoformat(run["at"]) for run in runs if run["entry"] == "every-second"}
    instant, expected = min(ran), []
    while instant <= until:
        expected.append(instant)
        instant += timedelta(seconds=1)
    return len(expected), twice, [each for each in expected if each not in ran]
