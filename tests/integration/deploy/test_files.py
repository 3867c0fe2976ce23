"""Dockerfile and Compose file, checked without a Docker engine."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import DEPLOY, ROOT, output, run
from tests.support.servers import find_program, need

#: Allowed base images and services.
IMAGES = {"python:3.12-slim", "redis:7-alpine", "postgres:16-alpine", "rabbitmq:3-management"}
IMAGES |= {"prom/prometheus:v3.5.0", "grafana/grafana:12.1.0"}


def lint(program: str, *arguments: object) -> None:
    output(need(lambda: find_program(program, folders=[Path(sys.executable).parent])), *arguments, cwd=ROOT)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def instructions(dockerfile: Path) -> list[str]:
    joined = dockerfile.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def test_linters_accept_the_files():
    yaml_files = [path for path in DEPLOY.rglob("*.y*ml") if "templates" not in path.parts]
    lint("hadolint", "deploy/Dockerfile")
    lint("shellcheck", "deploy/rolling-update")
    lint("yamllint", "--strict", "-c", "deploy/yamllint.yml", "docker-compose.yml", *yaml_files)


@pytest.mark.parametrize("file", ["docker-compose.yml", "tests/integration/deploy/counted/compose.yml"])
def test_compose_file_is_valid_by_its_schema(file):
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def test_image_copies_only_existing_files():
    """A missing path, or one that .dockerignore excludes, breaks the build."""
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


def test_only_known_images_are_used(compose):
    """Users have to pull and trust each image."""
    own = compose["x-example"]["image"]
    lines = instructions(DEPLOY / "Dockerfile")
    named = {line.split()[1] for line in lines if line.startswith("FROM ")}
    named |= {service["image"] for service in compose["services"].values()} - {own}
    assert named <= IMAGES


def test_image_runs_as_a_numeric_user_other_than_root():
    users = [line.split()[1] for line in instructions(DEPLOY / "Dockerfile") if line.startswith("USER ")]
    assert users
    assert all(user.isdecimal() and user != "0" for user in users)


def test_own_services_are_read_only_and_unprivileged(compose):
    for name in ("migrate", "web", "worker", "beat"):
        service = compose["services"][name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_image_is_built_by_one_service(compose):
    """If each service built it, each build would have another id, and the next `up` would replace every container."""
    own = [service for service in compose["services"].values() if service["image"] == compose["x-example"]["image"]]
    assert [service["pull_policy"] for service in own if "build" in service] == ["missing"]
    # Otherwise Compose would pull it from a registry.
    assert {service["pull_policy"] for service in own if "build" not in service} == {"never"}


def test_three_beats_have_limits_and_redis_keeps_its_data(compose):
    beat, redis = compose["services"]["beat"], compose["services"]["redis"]
    assert beat["deploy"]["replicas"] == 3
    assert {"cpus", "memory"} <= set(beat["deploy"]["resources"]["limits"])
    command = redis["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_ports_are_bound_to_localhost(compose):
    """The pages have no login."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_mounted_file_exists(compose):
    override = yaml.safe_load((ROOT / "tests/integration/deploy/counted/compose.yml").read_text())
    services = [*compose["services"].values(), *override["services"].values()]
    sources = [mount.split(":")[0] for service in services for mount in service.get("volumes", [])]
    missing = [source for source in sources if source.startswith("./") and not (ROOT / source).exists()]
    assert missing == []


def test_compose_parses_the_file(compose):
    """Every variable has a default."""
    docker = shutil.which("docker")
    if docker is None or run(docker, "compose", "version").returncode:
        pytest.skip("docker compose is not installed (CI has none either)")
    found = output(docker, "compose", "--profile", "monitoring", "config", "--format", "json", cwd=ROOT)
    assert set(json.loads(found)["services"]) == set(compose["services"])
