"""Services of the Compose file as a separate project, and the tasks that its worker ran."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import commands
from tests.support.commands import DEPLOY, ROOT, output
from tests.support.servers import wait_for


def skip_without_docker() -> None:
    """Skip the test without a Docker engine with Compose, on CI too, which has none."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed (CI has none either)")
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        asked = commands.run(*command)
        if asked.returncode:
            pytest.skip(f"no Docker engine with Compose is running (CI has none either): {asked.stderr.strip()[-200:]}")


class Stack:
    """Running copy of docker-compose.yml with the counted schedule.

    The methods wrap Compose's commands, ha_beat's commands and the records of the worker.
    """

    def __init__(self, folder: Path) -> None:
        self.counted = folder / "counted"
        self.counted.mkdir()
        self.counted.chmod(0o777)  # the worker's container uses another user
        self.project = f"ha-beat-test-{os.getpid()}"
        self.schedule = "first"
        self.scale = 3

    def docker(self, *arguments: str, timeout: float = 120) -> str:
        return output("docker", *arguments, timeout=timeout, cwd=ROOT, env=self._environ())

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        return self.docker("compose", *arguments, timeout=timeout)

    def _environ(self) -> Mapping[str, str]:
        return os.environ | {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": "docker-compose.yml:tests/integration/deploy/counted/compose.yml",
            "IMAGE": "ha-beat-under-test",
            "WEB_PORT": "0",
            "PAGE_PORT": "0",
            "COUNTED": str(self.counted),
            "COUNTED_SCHEDULE": self.schedule,
        }

    def failed_healthchecks(self) -> list[str]:
        """Return the last healthcheck output of each unhealthy container."""
        health = [self.state(container).get("Health", {}) for container in self.containers()]
        return [str(each["Log"][-2:]) for each in health if each.get("Status") == "unhealthy"]

    def up(self, *, scale: int = 3) -> None:
        """Start the services, and wait until every healthcheck passes."""
        self.scale = scale
        self.compose("up", "-d", "--no-build", "--wait", "--scale", f"beat={scale}")

    def roll(self) -> str:
        """Run deploy/rolling-update; return its output."""
        done = commands.run(DEPLOY / "rolling-update", "beat", timeout=600, cwd=ROOT, env=self._environ())
        assert done.returncode == 0, f"{done.stdout[-2000:]} {done.stderr[-3000:]} {self.failed_healthchecks()}"
        return done.stderr

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5")

    def containers(self, service: str = "beat") -> list[str]:
        return self.compose("ps", "-q", service).split()

    def state(self, container: str) -> dict[str, Any]:
        return json.loads(self.docker("inspect", "--format", "{{json .State}}", container))

    def cli(self, *arguments: str) -> Any:
        out = self.compose("exec", "-T", "worker", "celery", "-A", "example", "ha-beat", *arguments, "--json")
        return json.loads(out)

    def leader(self) -> tuple[str, str]:
        """Return the leader's container, and the leader's pid in it."""
        host, pid, _ = self.cli("status")["leader"].split(":")
        return next(each for each in self.containers() if each.startswith(host)), pid

    def history(self) -> list[dict[str, Any]]:
        """Return the journal, oldest record first."""
        return list(reversed(self.cli("history", "--limit", "100000")))

    def acquired_after(self, epoch: int, within: float = 40) -> dict[str, Any]:
        """Return the record of the first term after that epoch. Wait for `within` seconds."""

        def look() -> dict[str, Any] | None:
            terms = (each for each in self.history() if each["kind"] == "term" and each["event"] == "acquired")
            return next((term for term in terms if term["epoch"] > epoch), None)

        return wait_for(look, timeout=within, what=f"a term after epoch {epoch}", interval=0.5)

    def epoch(self) -> int:
        return self.cli("status")["lease"]["epoch"]

    def runs(self) -> list[dict[str, str]]:
        file = self.counted / "runs"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait_until_caught_up(self, within: float = 60) -> datetime:
        """Wait until the worker has run the tasks that are due now; return the current time."""
        now = datetime.now(UTC)

        def caught_up() -> bool:
            return any(datetime.fromisoformat(run["at"]) > now for run in self.runs())

        wait_for(caught_up, timeout=within, what="the worker to run the due tasks", interval=0.2)
        time.sleep(1.5)  # the worker's second process may be a little behind
        return now

    def count(self) -> tuple[int, list[str], list[datetime]]:
        """Return the `tally` of the worker's runs until now."""
        until = self.wait_until_caught_up()
        return tally(self.runs(), until)


def tally(runs: list[dict[str, str]], until: datetime) -> tuple[int, list[str], list[datetime]]:
    """Return the number of due instants of every-second, what ran twice, and the instants that did not run."""
    twice = [task for task, times in Counter(run["id"] for run in runs).items() if times > 1]
    instants = Counter((run["entry"], run["at"]) for run in runs)
    twice += [f"{entry} {at}" for (entry, at), times in instants.items() if times > 1]
    ran = {datetime.fromisoformat(run["at"]) for run in runs if run["entry"] == "every-second"}
    instant, expected = min(ran), []
    while instant <= until:
        expected.append(instant)
        instant += timedelta(seconds=1)
    return len(expected), twice, [each for each in expected if each not in ran]
