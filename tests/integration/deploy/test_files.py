"""Dockerfile and Compose file, looked at without an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.servers import PartMissing, need

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"

#: What an image may be made of, and what is run as it comes.
IMAGES = {
    "python:3.12-slim",
    "redis:7-alpine",
    "postgres:16-alpine",
    "rabbitmq:3-management",
    "prom/prometheus:v3.5.0",
    "grafana/grafana:12.1.0",
}


def tool(name: str) -> str:
    """A tool that pip installs beside this Python, or one on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)

    def have() -> str:
        if found is None:
            raise PartMissing(f"{name} is not installed")
        return found

    return need(have)


def passes(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def instructions(dockerfile: Path) -> list[str]:
    joined = dockerfile.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def test_hadolint_has_no_complaint():
    passes(tool("hadolint"), "deploy/Dockerfile")


def test_shellcheck_has_no_complaint():
    passes(tool("shellcheck"), "deploy/rolling-update")


def test_yamllint_has_no_complaint():
    files = [
        str(path) for path in [ROOT / "docker-compose.yml", *DEPLOY.rglob("*.y*ml")] if "templates" not in path.parts
    ]
    passes(tool("yamllint"), "--strict", "-c", "deploy/yamllint.yml", *files)


@pytest.mark.parametrize("file", ["docker-compose.yml", "tests/integration/deploy/counted/compose.yml"])
def test_the_compose_file_is_one_by_its_schema(file):
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", file)


def test_the_image_copies_files_that_exist():
    """A path that .dockerignore keeps out, or that nobody wrote, breaks the build."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = instructions(DEPLOY / "Dockerfile")
    defaults = dict(line.removeprefix("ARG ").split("=", 1) for line in lines if line.startswith("ARG "))
    copied = [
        re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], source)
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    ]

    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in let_in, source


def test_only_known_images_are_named(compose):
    """Each other one is one more to pull, to watch and to trust."""
    own = compose["x-example"]["image"]
    lines = instructions(DEPLOY / "Dockerfile")
    named = {line.split()[1] for line in lines if line.startswith("FROM ")}
    named |= {service["image"] for service in compose["services"].values()} - {own}

    assert named <= IMAGES


def test_the_image_runs_as_a_user_with_a_number():
    users = [line.split()[1] for line in instructions(DEPLOY / "Dockerfile") if line.startswith("USER ")]

    assert users
    assert all(user.isdecimal() and user != "0" for user in users)


def test_what_is_ours_can_neither_write_nor_gain_rights(compose):
    for name in ("migrate", "web", "worker", "beat"):
        service = compose["services"][name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_the_image_is_built_once(compose):
    """Built for each service, it has another id each time, and the next `up`, for two more beats, replaces them all."""
    own = [service for service in compose["services"].values() if service["image"] == compose["x-example"]["image"]]

    assert [service["pull_policy"] for service in own if "build" in service] == ["missing"]
    # Or Compose would ask a registry for it.
    assert {service["pull_policy"] for service in own if "build" not in service} == {"never"}


def test_there_are_three_beats_with_limits_and_redis_keeps_everything(compose):
    beat, redis = compose["services"]["beat"], compose["services"]["redis"]

    assert beat["deploy"]["replicas"] == 3
    assert {"cpus", "memory"} <= set(beat["deploy"]["resources"]["limits"])
    command = redis["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_nothing_is_open_to_other_machines(compose):
    """The pages ask for no login: ports are those of 127.0.0.1 until somebody decides otherwise."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_file_that_is_mounted_exists(compose):
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]

    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source


def test_compose_reads_it_as_meant(compose):
    """Compose's own parser finds every variable a default."""
    _need_compose()
    told = passes("docker", "compose", "--profile", "monitoring", "config", "--format", "json")

    found = json.loads(told[told.index("{") :])
    assert set(found["services"]) == set(compose["services"])


def _need_compose() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker compose here (CI has none either)")
